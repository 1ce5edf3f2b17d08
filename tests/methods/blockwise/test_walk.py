"""The walk: what the layers of each block are given, while the blocks before them change."""

import pytest
import torch

from compression.methods.blockwise.walk import batch_size, walk
from compression.nn.hooks import on_forward
from compression.nn.inputs import forward
from tests.conftest import Kept, tiny_bert, words_task
from tests.methods.blockwise.decoders import FORMS, make
from tests.methods.tiny_language import language_task

CPU = torch.device("cpu")


def batches(task, count=24, size=12):
    return [inputs for inputs, _ in task.train.select(torch.arange(count)).batches(size)]


def seen_by(model, name, given):
    """What the layer `name` is given in whole forward passes."""
    rows = []
    with (
        torch.no_grad(),
        on_forward({"": model.get_submodule(name)}, lambda call: rows.append(call.inputs[0]), before=True),
    ):
        for inputs in given:
            forward(model, inputs)
    return torch.cat([r.flatten(0, -2) for r in rows])


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_given_what_the_changed_blocks_before_them_return(form):
    model, given = make(form), batches(language_task())
    for stage in walk(model, given, CPU, Kept()):
        rows = torch.cat(list(stage.rows()))
        for name in stage.layers:
            torch.testing.assert_close(rows, seen_by(model, name, given), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for layer in stage.layers.values():
                layer.weight.mul_(1.5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_padding_is_left_out():
    model, task = tiny_bert(), words_task()
    given = batches(task, 256, 64)
    tokens = sum(int(inputs["attention_mask"].sum()) for inputs in given)
    assert tokens < 256 * 8
    for stage in walk(model, given, CPU, Kept()):
        assert sum(len(rows) for rows in stage.rows()) == tokens


def test_time_and_memory_of_each_block_are_recorded():
    record, model = Kept(), make("llama")
    for _ in walk(model, batches(language_task()), CPU, record):
        pass
    assert [row["block"] for row in record.tables["blocks"]] == ["model.layers.0", "model.layers.1"]
    assert all(row["seconds"] > 0 and row["peak_memory_mb"] > 10 for row in record.tables["blocks"])


def test_a_model_that_would_fill_a_cache_does_not_and_keeps_its_setting():
    model, given = make("llama", use_cache=True), batches(language_task())
    for stage in walk(model, given, CPU, Kept()):
        first, second = (torch.cat(list(stage.rows())) for _ in range(2))
        assert torch.equal(first, second)
    assert model.config.use_cache is True


def test_masks_and_positions_that_batches_share_are_kept_once():
    model = make("llama")
    stage = next(walk(model, batches(language_task()), CPU, Kept()))
    one, other = (batch.arguments["model.layers.0"].tensors for batch in stage._batches[:2])
    assert len(one) > 2
    assert all(a is b for a, b in zip(one, other, strict=True))


def test_a_batch_has_as_many_tokens_whatever_the_length():
    assert batch_size(language_task()) == 2048 // 16
    assert batch_size(words_task()) == 2048 // 8
