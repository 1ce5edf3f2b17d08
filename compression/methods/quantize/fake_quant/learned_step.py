"""Learned step size quantization (LSQ): the step between two levels is a parameter.

Esser et al. 2020, arXiv:1902.08153; here and for the first and last layers of other fake-quantization trainings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compression.methods.quantize.fake_quant.layers import InputFakeQuantize, WeightFakeQuantize
from compression.methods.quantize.fake_quant.ste import round_ste
from compression.nn.quantized import QParams, code_range, weight_code_range

MIN_STEP = torch.finfo(torch.float32).tiny * 2**20  # far from where a division by it would overflow
SAMPLE = 2**14  # values to choose a first step by
SHARES = torch.linspace(0.02, 1.0, 99)  # of the step that clips nothing: the candidates for the first


def learned_steps(
    layer: nn.Linear | nn.Conv2d, bits: int, activation_bits: int
) -> tuple[WeightFakeQuantize, InputFakeQuantize]:
    """Fake quantization with learned steps for the weight and the input of `layer`."""
    return LearnedStepWeight(layer.weight, bits, activation_bits), LearnedStepInput(activation_bits)


class LearnedStepWeight(WeightFakeQuantize):
    """Rounds a weight to multiples of a learned step."""

    def __init__(self, weight: Tensor, bits: int, activation_bits: int) -> None:
        super().__init__()
        self.bits, (self.low, self.high) = bits, weight_code_range(bits, activation_bits)
        self.step = nn.Parameter(initial_step(weight.detach(), self.low, self.high))

    def forward(self, values: Tensor) -> Tensor:
        """Round `values`."""
        scale = gradient_scale(values.numel(), self.high)
        return quantize_with_step(values, self.step, self.low, self.high, scale)

    def qparams(self, weight: Tensor) -> QParams:  # noqa: ARG002
        """The parameters of the step; they do not depend on `weight`."""
        step = positive(self.step.detach()).view(1, 1)
        return QParams(self.bits, step, torch.zeros_like(step), self.low, self.high)


class LearnedStepInput(InputFakeQuantize):
    """Rounds an input to multiples of a learned step, with signed or unsigned codes as `initialize` chooses."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, (self.low, self.high) = bits, code_range(bits, signed=False)
        self.step = nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` `(batch, …)`."""
        scale = gradient_scale(values[0].numel(), self.high)
        return quantize_with_step(values, self.step, self.low, self.high, scale)

    @torch.no_grad()
    def initialize(self, values: Tensor) -> None:
        """Choose the codes and the first step for inputs of which `values` are a sample."""
        self.low, self.high = code_range(self.bits, signed=bool((values < 0).any()))
        self.step.copy_(initial_step(values, self.low, self.high))

    def qparams(self) -> QParams:
        """The parameters of the step; signed codes are shifted to unsigned ones by the zero point."""
        step = positive(self.step.detach())
        return QParams(self.bits, step, torch.full_like(step, -self.low), *code_range(self.bits, signed=False))


def initial_step(values: Tensor, low: int, high: int) -> Tensor:
    """The step, a scalar, with the least squared error of `values` rounded to its multiples low..high.

    As in LSQ+, Bhalgat et al. 2020, arXiv:2004.09576, section 3.2. The paper's own 2 mean|v| / sqrt(high) depends on
    the values' mean alone; a ResNet-20 of 4 bits answers 21% of CIFAR-10 right before its first epoch with it.
    """
    values = values.flatten()
    values = values[torch.linspace(0, len(values) - 1, min(len(values), SAMPLE), device=values.device).long()].float()
    # -1 where the codes are unsigned: there is no value below 0 then, and nothing is divided by 0.
    full = torch.maximum(values.amax() / high, values.amin() / min(low, -1)).clamp_min(MIN_STEP)  # nothing is clipped
    steps = full * SHARES.to(values).unsqueeze(1)
    # (99, 1) against (16384,): all candidates at once take 6.5 MB a tensor.
    errors = ((values / steps).round().clamp(low, high) * steps - values).square().sum(1)
    return positive(steps[errors.argmin()].squeeze())


def gradient_scale(count: int, high: int) -> float:
    """1 / sqrt(N high): section 2.2 of the paper; N is the number of weights, or of features of one example."""
    return 1 / math.sqrt(max(1, count) * high)


def positive(step: Tensor) -> Tensor:
    """The step as it is used: an optimizer may make it negative or zero."""
    return step.abs().clamp_min(MIN_STEP)


def quantize_with_step(values: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    """`values` rounded to multiples low..high of the scalar `step` (eq. 1 and 2 of the paper).

    The gradient by a value is 1 within the range and 0 outside (eq. 5); by the step, times `scale`, it is
    round(v / s) - v / s within, low or high outside (eq. 3).
    """
    step = scale_gradient(positive(step), scale)
    # Autograd gives eq. 3: the derivative of round(v / s) s is round(v / s) by the factor s, and -v / s through v / s,
    # which the clamp cuts off outside of the range.
    return round_ste((values / step).clamp(low, high)) * step


def scale_gradient(values: Tensor, scale: float) -> Tensor:
    """`values`, with a gradient `scale` times as large."""
    scaled = values * scale
    return (values - scaled).detach() + scaled
