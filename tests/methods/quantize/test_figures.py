"""The figures of trained quantizers, and the values that they show."""

import copy

import pytest
import torch

from compression import models
from compression.methods import method
from compression.methods.quantize.calibration.figures import weight_in_steps
from compression.methods.quantize.calibration.observers import representable_range
from compression.nn.quantized import QParams, dequantize, quantize


@pytest.mark.parametrize("name", ["lsq", "dorefa", "bnn", "qat"])
def test_a_trained_quantizer_shows_weights_and_activations_with_their_ranges(name, task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, model)
    method(name)(epochs=1).apply(copy.deepcopy(model), context)
    assert {"activation-ranges", "weight-ranges"} <= set(context.record.figures)


def test_weights_in_steps_are_their_codes_once_rounded():
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    qparams = QParams(4, torch.full((4, 1), 0.1), torch.zeros(4, 1), -8, 7)
    steps = torch.from_numpy(weight_in_steps(weight, qparams))
    codes = quantize(weight.flatten(1), qparams.scale, qparams.zero_point, -8, 7).view_as(weight)
    assert torch.equal(steps.round().clamp(-8, 7), codes)


def test_the_ends_are_the_values_of_the_outermost_codes():
    qparams = QParams(4, torch.tensor(0.25), torch.tensor(3.0), 0, 15)
    low, high = representable_range(qparams)
    codes = torch.tensor([0.0, 15.0])
    assert [low.item(), high.item()] == dequantize(codes, qparams.scale, qparams.zero_point).tolist() == [-0.75, 3.0]


def test_dorefas_weights_are_shown_as_what_is_rounded():
    from compression.methods.quantize.dorefa import TanhWeight

    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    fake_quant = TanhWeight(3)
    qparams = fake_quant.qparams(weight)
    steps = torch.from_numpy(weight_in_steps(fake_quant.transform(weight), qparams))
    assert qparams.low - 1 < steps.min()
    assert steps.max() < qparams.high + 1
    codes = (fake_quant(weight) / qparams.scale + qparams.zero_point).round()
    assert (steps - codes).abs().max() <= 0.5 + 1e-4
