"""DoReFa: weights squeezed into [-1, 1] by tanh, inputs clipped to [0, 1], both rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.quantize.fake.aware import Aware
from compression.methods.quantize.fake.rounding import InputRounding, Rounding, round_through, sign
from compression.nn.quantized import QParams, code_range
from compression.nn.quantized.qparams import MAX_PAIR_SUM
from compression.params import param


@dataclass(frozen=True)
class Dorefa(Aware):
    """Round tanh-normalised weights and inputs clipped to [0, 1].  Zhou et al. 2016, arXiv:1606.06160, eq. 5 to 11.

    Gradients pass the rounding unchanged; they are not rounded themselves. Weights change their size: a batch norm
    has to follow each layer, as in the paper's networks, or the training has to make up for it.
    """

    bits: int = param(2, "bits of a weight; 1 is the sign times the mean magnitude", interval="[1, 8]", search=(1, 8))
    activation_bits: int = param(2, "bits of what goes into a layer", interval="[1, 8]", search=(1, 8))

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = 2**self.bits - 1
        if self.bits < 8 and 2 * largest * (2**self.activation_bits - 1) > MAX_PAIR_SUM:
            raise UserError(
                f"bits={self.bits} with activation_bits={self.activation_bits} could overflow on CPUs without VNNI; "
                "take activation_bits=7 or less, bits=6 or less, or bits=8, which is computed in floats."
            )

    def roundings(self, layer: nn.Linear | nn.Conv2d) -> tuple[Rounding, nn.Module]:
        return (TanhWeight(self.bits) if self.bits > 1 else MeanSign()), UnitInput(self.activation_bits)


class TanhWeight(Rounding):
    """Weights as 2^bits levels from -1 to 1, none of them zero."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        return normalised(values, self.bits)

    def before(self, values: Tensor) -> Tensor:
        return 2 * unit(values) - 1

    def numbers(self, values: Tensor) -> QParams:
        scale = torch.full((1, 1), 2 / (2**self.bits - 1), device=values.device)
        return QParams(self.bits, scale, torch.full_like(scale, -0.5), *code_range(self.bits, signed=True))


class MeanSign(Rounding):
    """Weights as their sign times their mean magnitude over the layer: eq. 7."""

    def forward(self, values: Tensor) -> Tensor:
        return mean_sign(values)

    def numbers(self, values: Tensor) -> QParams:
        scale = 2 * values.detach().abs().mean().view(1, 1)
        return QParams(1, scale, torch.full_like(scale, -0.5), *code_range(1, signed=True))


class UnitInput(InputRounding):
    """Inputs clipped to [0, 1] in 2^bits levels: eq. 11."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        return quantize_unit(values.clamp(0, 1), self.bits)

    def activation(self) -> QParams:
        return QParams(
            self.bits, torch.tensor(1 / (2**self.bits - 1)), torch.tensor(0.0), *code_range(self.bits, signed=False)
        )


def quantize_unit(values: Tensor, bits: int) -> Tensor:
    """Values in [0, 1] to the nearest of 2^bits levels; gradients pass: eq. 5 and 6."""
    steps = 2**bits - 1
    return round_through(values * steps) / steps


def normalised(weight: Tensor, bits: int) -> Tensor:
    """2 quantize(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1: eq. 9."""
    return 2 * quantize_unit(unit(weight), bits) - 1


def unit(weight: Tensor) -> Tensor:
    """tanh(w) / (2 max|tanh(w)|) + 1/2, within [0, 1]."""
    squeezed = weight.tanh()
    return squeezed / (2 * squeezed.abs().max().clamp_min(1e-12)) + 0.5


def mean_sign(weight: Tensor) -> Tensor:
    """sign(w) mean|w|, whose gradients pass unchanged: eq. 7 and 8."""
    return (sign(weight) * weight.abs().mean() - weight).detach() + weight
