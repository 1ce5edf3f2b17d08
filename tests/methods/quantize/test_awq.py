"""AWQ's scales and clipping against the formula, and the method on decoders."""

import copy

import pytest
import torch

from compression.methods import method
from compression.methods.blockwise.folding import find_fold
from compression.methods.blockwise.walk import walk
from compression.methods.quantize.awq import InputSummary, output_error, power_scales, summarize
from compression.methods.quantize.calibration.clipping import clipped
from compression.methods.quantize.calibration.weights import quantize_dequantize, weight_qparams
from compression.models import storage
from compression.nn.inputs import forward
from compression.nn.quantized import QuantLinear
from tests.conftest import Kept, tiny_bert, words_task
from tests.methods.blockwise.decoders import make
from tests.methods.tiny_language import language_task


def salient(count=400, features=24):
    """Inputs of which three are ten times as large as the others."""
    torch.manual_seed(0)
    inputs = torch.randn(count, features)
    inputs[:, [3, 9, 20]] *= 10
    return inputs


def test_inputs_are_summarized_over_batches():
    inputs = salient()
    found = summarize(inputs.split(150))
    torch.testing.assert_close(found.moment, inputs.T @ inputs / 400)
    torch.testing.assert_close(found.magnitude, inputs.abs().mean(0))
    scales = torch.rand(24) + 0.5
    torch.testing.assert_close(found.divided(scales).moment, summarize([inputs / scales]).moment)


def test_the_error_is_that_of_the_outputs():
    inputs, error = salient(), torch.randn(5, 24)
    expected = (inputs @ error.T).square().sum(1).mean()
    torch.testing.assert_close(output_error(error, summarize([inputs]).moment), expected)


def test_scales_are_powers_of_the_magnitudes_around_one():
    magnitudes = torch.tensor([1.0, 4.0, 16.0])
    assert power_scales(magnitudes, 0.0).tolist() == [1.0, 1.0, 1.0]
    assert power_scales(magnitudes, 0.5).tolist() == [0.5, 1.0, 2.0]  # (1, 2, 4) / sqrt(4)
    assert power_scales(torch.zeros(2), 0.5).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("granularity", ["channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_costs_each_group_of_outputs_no_more(granularity, symmetric):
    inputs, weight = salient(), torch.randn(6, 24)
    weight[:, ::7] *= 4
    moment = summarize([inputs]).moment
    full = weight_qparams(weight, 2, granularity, 10, symmetric, observer="minmax")
    clip = clipped(weight, full, moment, symmetric)
    size = full.group_size or 24
    for start in range(0, 24, size):
        part = slice(start, start + size)
        errors = [(quantize_dequantize(weight, q) - weight)[:, part] for q in (clip, full)]
        costs = [((e @ moment[part, part]) * e).sum(1) for e in errors]
        assert (costs[0] <= costs[1] * (1 + 1e-5)).all()
    assert (clip.scale < full.scale).any()


def test_weights_with_large_inputs_get_the_finer_steps():
    model, task = make("llama"), language_task()
    given = [task.train.select(torch.arange(32)).inputs]
    stage = next(walk(model, given, torch.device("cpu"), Kept()))
    fold, inputs = find_fold(stage), summarize([salient(features=32)])
    step = method("awq")(bits=3, group_size=16)
    scales = step.best_scales(stage.layers, inputs, fold)
    assert set(scales.topk(3).indices.tolist()) == {3, 9, 20}

    def error(scales):
        layers = [layer.weight.detach() for layer in stage.layers.values()]
        return sum(step._rounding_error(values, scales, inputs.moment) for values in layers)

    assert error(scales) < 0.5 * error(torch.ones(32))


def output_gap(model, other, task):
    with torch.no_grad():
        return (forward(model, task.example(16)) - forward(other, task.example(16))).square().mean()


@pytest.mark.parametrize("form", ["llama", "opt", "gpt2"])
def test_the_outputs_are_closer_than_those_of_the_nearest_levels(form, make_context):
    task, model = language_task(), make(form)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:  # outliers, as trained norms make them
                parameter[::11] *= 8
    fields = {"bits": 3, "group_size": 16, "calibration_samples": 32}
    context = make_context(task, copy.deepcopy(model))
    made = method("awq")(**fields).apply(copy.deepcopy(model), context)
    nearest = copy.deepcopy(model)
    for name in [name for name, m in made.named_modules() if isinstance(m, QuantLinear)]:
        layer = nearest.get_submodule(name)
        qparams = weight_qparams(layer.weight, 3, "group", 16, False, observer="minmax")
        nearest.set_submodule(name, QuantLinear.from_float(layer, qparams))
    assert output_gap(made, model, task) < 0.8 * output_gap(nearest, model, task)
    told = " ".join(context.record.warnings)
    assert ("Rounded without scales" in told) == (form == "gpt2")


def test_it_reloads_with_equal_answers(make_context, tmp_path):
    task, model = language_task(), make("llama")
    made = method("awq")(calibration_samples=16, group_size=16).apply(model, make_context(task, copy.deepcopy(model)))
    again = storage.load(storage.save(made, tmp_path / "model", {}))
    with torch.no_grad():
        torch.testing.assert_close(forward(again, task.example(4)), forward(made, task.example(4)))


def test_an_encoder_whose_norms_take_no_scales_is_rounded_and_that_is_told(make_context):
    task, model = words_task(), tiny_bert()
    context = make_context(task, copy.deepcopy(model))
    made = method("awq")(calibration_samples=32).apply(model, context)
    assert sum(isinstance(m, QuantLinear) for m in made.modules()) == 18
    assert "bert.encoder.layer.0.intermediate.dense" in context.record.warnings[0]
    assert "attention.output" not in context.record.warnings[0]


def test_a_summary_is_kept_when_nothing_is_scaled():
    inputs = InputSummary(torch.eye(2), torch.ones(2))
    assert torch.equal(inputs.divided(torch.ones(2)).moment, torch.eye(2))
