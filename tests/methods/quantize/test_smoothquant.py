"""SmoothQuant's scales against the formula, and that they change no answer."""

import copy

import pytest
import torch

from compression import methods
from compression.errors import UserError
from compression.methods import method
from compression.methods.quantize.smoothquant import smoothing_scales
from compression.nn.hooks import on_forward
from compression.nn.inputs import forward
from tests.methods.blockwise.decoders import make
from tests.methods.tiny_language import language_task


def outlying(form):
    """A decoder in which a few channels of each norm are some 20 times as large as the others."""
    model = make(form)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Not the norms of queries and keys: attention that is all or nothing makes much of rounding.
            if any(part in name for part in ("layernorm", "layer_norm", "ln_")) and name.endswith("weight"):
                parameter[::11] += 20  # from 1, or 0 where a norm adds the 1
    return model


def test_scales_are_those_of_the_paper():
    inputs, weights = torch.tensor([16.0, 1.0, 0.0, 4.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    assert smoothing_scales(inputs, weights, 0.5).tolist() == [4.0, 0.5, 1.0, 1.0]
    assert smoothing_scales(inputs, weights, 1.0).tolist() == [16.0, 1.0, 1.0, 1.0]
    assert smoothing_scales(inputs, weights, 0.0).tolist() == [1.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("form", ["llama", "qwen2", "opt", "gpt2", "gemma3_text"])
def test_the_answers_stay_and_the_outliers_go(form, make_context):
    task, model = language_task(), outlying(form)
    context = make_context(task, copy.deepcopy(model))
    made = method("smoothquant")(calibration_samples=32).apply(copy.deepcopy(model), context)
    with torch.no_grad():
        before, after = forward(model, task.example(16)), forward(made, task.example(16))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    ratios = [_outliers(m, task) for m in (model, made)]
    assert ratios[1] < 0.6 * ratios[0]
    assert bool(context.record.warnings) == (form == "gpt2")  # what is behind GELU or all of attention stays


def _outliers(model, task):
    """How much larger the largest input of the first layer is than the mean of its channels' largest."""
    name = next(n for n, m in model.named_modules() if type(m) is torch.nn.Linear and ".0." in n)
    largest = []
    with (
        torch.no_grad(),
        on_forward({"": model.get_submodule(name)}, lambda c: largest.append(c.inputs[0]), before=True),
    ):
        forward(model, task.example(16))
    channels = largest[0].flatten(0, -2).abs().amax(0)
    return channels.max() / channels.mean()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_its_ends_one_side_has_no_outliers_left(alpha, make_context):
    task, model = language_task(), outlying("llama")
    task = copy.copy(task)
    made = method("smoothquant")(alpha=alpha, calibration_samples=32).apply(model, make_context(task, model))
    block = made.model.layers[0].self_attn
    inputs = []
    with torch.no_grad(), on_forward({"": block.q_proj}, lambda c: inputs.append(c.inputs[0]), before=True):
        forward(made, task.train.select(torch.arange(192)).inputs)
    largest = inputs[0].flatten(0, -2).abs().amax(0)
    weights = torch.stack([p.weight.abs().amax(0) for p in (block.q_proj, block.k_proj, block.v_proj)]).amax(0)
    flat = largest if alpha else weights
    assert flat.max() < 1.5 * flat.min()


@pytest.mark.parametrize("quantizer", ["static", "dynamic"])
def test_what_is_smoothed_first_quantizes_better(quantizer, make_context):
    task, model = language_task(), outlying("llama")

    def error(recipe):
        made = copy.deepcopy(model)
        for step in methods.parse(recipe):
            made = step.apply(made, make_context(task, model))
        with torch.no_grad():
            return (forward(made, task.example(16)) - forward(model, task.example(16))).square().mean()

    options = ":skip=lm_head/model.embed_tokens"
    assert error(f"smoothquant+{quantizer}{options}") < 0.7 * error(f"{quantizer}{options}")


def test_it_leaves_floats_so_that_another_step_may_follow():
    methods.check_order(methods.parse("smoothquant+static"))
    with pytest.raises(UserError, match="works on weights in floats"):
        methods.check_order(methods.parse("static+smoothquant"))
