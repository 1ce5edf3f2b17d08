"""Learned steps between levels: the numbers of LSQ, and of the first and last layers of other trainings.

Esser et al. 2020, arXiv:1902.08153.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compression.methods.quantize.fake.rounding import InputRounding, Rounding, round_through
from compression.nn.quantized import QParams, code_range, weight_code_range


def learned(layer: nn.Linear | nn.Conv2d, bits: int, activation_bits: int) -> tuple[Rounding, nn.Module]:
    """Learned steps for the weight and the input of `layer`."""
    return LearnedWeight(layer.weight, bits, activation_bits), LearnedInput(activation_bits)


class LearnedWeight(Rounding):
    """A weight in multiples of a learned step."""

    def __init__(self, weight: Tensor, bits: int, activation_bits: int) -> None:
        super().__init__()
        self.bits, (self.low, self.high) = bits, weight_code_range(bits, activation_bits)
        self.step = nn.Parameter(first_step(weight.detach(), self.high))

    def forward(self, values: Tensor) -> Tensor:
        scale = gradient_scale(values.numel(), self.high)
        return learned_step(values, self.step, self.low, self.high, scale)

    def numbers(self, values: Tensor) -> QParams:
        step = positive(self.step.detach()).view(1, 1)
        return QParams(self.bits, step, torch.zeros_like(step), self.low, self.high)


class LearnedInput(InputRounding):
    """An input in multiples of a learned step, which the first batch that comes sets."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, (self.low, self.high) = bits, code_range(bits, signed=False)
        self.step = nn.Parameter(torch.ones(()))
        self.started = False

    def forward(self, values: Tensor) -> Tensor:
        if not self.started:
            self.start(values.detach())
        return learned_step(values, self.step, self.low, self.high, gradient_scale(values[0].numel(), self.high))

    @torch.no_grad()
    def start(self, values: Tensor) -> None:
        """Choose signed or unsigned codes and the first step."""
        self.low, self.high = code_range(self.bits, signed=bool((values < 0).any()))
        self.step.copy_(first_step(values, self.high))
        self.started = True

    def activation(self) -> QParams:
        step = positive(self.step.detach())
        return QParams(self.bits, step, torch.full_like(step, -self.low), *code_range(self.bits, signed=False))


def first_step(values: Tensor, high: int) -> Tensor:
    """2 mean|v| / sqrt(high), a scalar: section 2.1 of the paper."""
    return positive(2 * values.abs().mean() / math.sqrt(high))


def gradient_scale(count: int, high: int) -> float:
    """1 / sqrt(N high): section 2.2 of the paper; N weights, or features of one example."""
    return 1 / math.sqrt(max(1, count) * high)


def positive(step: Tensor) -> Tensor:
    """The step as it is used: optimizers know no bounds."""
    return step.abs().clamp_min(torch.finfo(torch.float32).tiny * 2**20)


def learned_step(values: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    """`values` rounded to multiples low..high of `step` (eq. 1 and 2 of the paper).

    The gradient by a value is 1 within the range and 0 outside (eq. 5); by the step, times `scale`, it is
    round(v / s) - v / s within, low or high outside (eq. 3).
    """
    step = scale_gradient(positive(step), scale)
    return round_through((values / step).clamp(low, high)) * step


def scale_gradient(values: Tensor, scale: float) -> Tensor:
    """`values`, with a gradient `scale` times as large."""
    scaled = values * scale
    return (values - scaled).detach() + scaled
