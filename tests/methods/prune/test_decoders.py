"""Wanda and sparsegpt on decoders: block by block, as passes of the whole model would have it."""

import copy

import pytest
import torch

from compression.errors import UserError
from compression.methods import method
from compression.nn.inputs import forward
from compression.nn.layers import set_mask
from compression.nn.matrices import mask_matrices, sum_moments, weight_matrices
from tests.methods.blockwise.decoders import FORMS, make
from tests.methods.prune.conftest import zeros
from tests.methods.tiny_language import language_task

NAMES = ["wanda", "sparsegpt"]


def pruned(name, form, make_context, **fields):
    task, model = language_task(), make(form)
    context = make_context(task, copy.deepcopy(model))
    return method(name)(examples=32, **fields).apply(model, context), context


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_the_layers_of_blocks_meet_the_target_and_the_others_stay_dense(name, form, make_context):
    model, context = pruned(name, form, make_context)
    shares = {
        layer: gone.float().mean().item() for layer, gone in zeros(model).items() if ".0." in layer or ".1." in layer
    }
    assert all(share == pytest.approx(0.5, abs=0.01) for share in shares.values())
    assert len(shares) >= 8
    assert torch.equal(model.get_output_embeddings().weight, context.original.get_output_embeddings().weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_it_is_what_whole_passes_layer_by_layer_give(name, form, make_context):
    found, context = pruned(name, form, make_context)
    model, step, task = copy.deepcopy(context.original), method(name)(examples=32), context.task
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:32]
    given = [task.train.select(order).inputs]
    for layer_name in [n for n, m in found.named_modules() if hasattr(m, "mask")]:
        layer = model.get_submodule(layer_name)
        [moment] = sum_moments(model, layer, layer, given, step.input_moment)
        [weight], [allowed] = weight_matrices(layer), mask_matrices(layer)
        values, keep = step.prune_matrix(weight, moment, allowed)
        with torch.no_grad():
            layer.weight.copy_(values)
        set_mask(layer, keep)
    with torch.no_grad():
        torch.testing.assert_close(
            forward(found, task.example(8)), forward(model, task.example(8)), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_two_of_four_hold_in_every_group(name, make_context):
    model, context = pruned(name, "llama", make_context, pattern="2:4")
    for layer, gone in zeros(model).items():
        if layer != "lm_head":
            assert (gone.unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert [row["block"] for row in context.record.tables["blocks"]] == ["model.layers.0", "model.layers.1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_that_no_layer_fits_is_refused(name, make_context):
    with pytest.raises(UserError, match="No layer's inputs divide by the m of pattern=2:7"):
        pruned(name, "llama", make_context, pattern="2:7")
