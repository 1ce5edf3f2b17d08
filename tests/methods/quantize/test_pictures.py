"""Pictures of what trained quantizers chose, and the figures in them."""

import copy

import pytest
import torch

from compression import models
from compression.methods import method
from compression.methods.quantize.calibration import pictures
from compression.nn.quantized import QParams, dequantize, quantize


@pytest.mark.parametrize("name", ["lsq", "dorefa", "bnn", "qat"])
def test_a_trained_quantizer_shows_weights_and_activations_with_their_ranges(name, task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, model)
    method(name)(epochs=1).apply(copy.deepcopy(model), context)
    assert {"activation-ranges", "weight-ranges"} <= set(context.record.figures)


def test_weights_in_steps_are_their_codes_once_rounded():
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    numbers = QParams(4, torch.full((4, 1), 0.1), torch.zeros(4, 1), -8, 7)
    steps = torch.from_numpy(pictures.in_steps(weight, numbers))
    codes = quantize(weight.flatten(1), numbers.scale, numbers.zero_point, -8, 7).view_as(weight)
    assert torch.equal(steps.round().clamp(-8, 7), codes)


def test_the_ends_are_the_values_of_the_outermost_codes():
    numbers = QParams(4, torch.tensor(0.25), torch.tensor(3.0), 0, 15)
    low, high = pictures.ends(numbers)
    codes = torch.tensor([0.0, 15.0])
    assert [low, high] == dequantize(codes, numbers.scale, numbers.zero_point).tolist() == [-0.75, 3.0]


def test_dorefas_weights_are_shown_as_what_is_rounded():
    from compression.methods.quantize.dorefa import TanhWeight, normalised

    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    rounding = TanhWeight(3)
    numbers = rounding.numbers(weight)
    steps = torch.from_numpy(pictures.in_steps(rounding.before(weight), numbers))
    assert numbers.low - 1 < steps.min()
    assert steps.max() < numbers.high + 1
    codes = (normalised(weight, 3) / numbers.scale + numbers.zero_point).round()
    assert (steps - codes).abs().max() <= 0.5 + 1e-4
