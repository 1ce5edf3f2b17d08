"""DoReFa: weights normalized to [-1, 1] by tanh, inputs clipped to [0, 1], both rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.quantize.fake_quant.base import FakeQuantTraining
from compression.methods.quantize.fake_quant.layers import InputFakeQuantize, WeightFakeQuantize
from compression.methods.quantize.fake_quant.ste import round_ste, sign
from compression.nn.quantized import QParams, code_range
from compression.nn.quantized.qparams import MAX_PAIR_SUM
from compression.params import param


@dataclass(frozen=True)
class Dorefa(FakeQuantTraining):
    """Round tanh-normalized weights and inputs clipped to [0, 1].  Zhou et al. 2016, arXiv:1606.06160, eq. 5 to 11.

    Gradients pass the rounding unchanged; they are not rounded themselves. The weights change their magnitude: a batch
    norm has to follow each layer, as in the paper's networks, or the training has to make up for it.
    """

    bits: int = param(2, "bits of a weight; 1 is the sign times the mean magnitude", interval="[1, 8]", search=(1, 8))
    activation_bits: int = param(2, "bits of what goes into a layer", interval="[1, 8]", search=(1, 8))

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = 2**self.bits - 1  # of the odd levels as integers, ±1, ±3, …
        # 6 bits beside 8 (2 * 63 * 255 = 32,130) and 7 beside 7 (2 * 127 * 127 = 32,258) fit. Odd levels of 8 bits, up
        # to ±255, need a ninth bit in an integer kernel, and so have none.
        if self.bits < 8 and 2 * largest * (2**self.activation_bits - 1) > MAX_PAIR_SUM:
            raise UserError(
                f"bits={self.bits} with activation_bits={self.activation_bits} could overflow on CPUs without VNNI; "
                "take activation_bits=7 or less, bits=6 or less, or bits=8, which is computed in floats."
            )

    def fake_quantizers(self, layer: nn.Linear | nn.Conv2d) -> tuple[WeightFakeQuantize, nn.Module]:  # noqa: ARG002
        """Levels from -1 to 1 for the weight, and from 0 to 1 for the input."""
        weight = TanhWeight(self.bits) if self.bits > 1 else MeanSignWeight()
        return weight, UnitInput(self.activation_bits)


class TanhWeight(WeightFakeQuantize):
    """Rounds a tanh-normalized weight to 2^bits levels from -1 to 1, none of them zero: eq. 9."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        """Normalize and round `values`."""
        return 2 * quantize_unit(normalize_weight(values), self.bits) - 1

    def transform(self, weight: Tensor) -> Tensor:
        """The normalized weight, within [-1, 1]."""
        return 2 * normalize_weight(weight) - 1

    def qparams(self, weight: Tensor) -> QParams:
        """Levels at odd multiples of half a step; they do not depend on `weight`."""
        # 2^bits levels from -1 to 1 are 2^bits - 1 steps apart; code c stands for (c + 1/2) steps.
        scale = torch.full((1, 1), 2 / (2**self.bits - 1), device=weight.device)
        return QParams(self.bits, scale, torch.full_like(scale, -0.5), *code_range(self.bits, signed=True))


class MeanSignWeight(WeightFakeQuantize):
    """The sign of a weight times the mean magnitude over the layer: eq. 7."""

    def forward(self, values: Tensor) -> Tensor:
        """Sign and scale of `values`."""
        return mean_sign(values)

    def qparams(self, weight: Tensor) -> QParams:
        """The two levels of one bit, at plus and minus the mean magnitude."""
        scale = 2 * weight.detach().abs().mean().view(1, 1)
        return QParams(1, scale, torch.full_like(scale, -0.5), *code_range(1, signed=True))


class UnitInput(InputFakeQuantize):
    """Clips an input to [0, 1] and rounds it to 2^bits levels: eq. 11."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        """Clip and round `values`."""
        return quantize_unit(values.clamp(0, 1), self.bits)

    def qparams(self) -> QParams:
        """Levels from 0 to 1."""
        scale = torch.tensor(1 / (2**self.bits - 1))
        return QParams(self.bits, scale, torch.tensor(0.0), *code_range(self.bits, signed=False))


def quantize_unit(values: Tensor, bits: int) -> Tensor:
    """Round values in [0, 1] to the nearest of 2^bits levels; the gradient is 1 everywhere: eq. 5 and 6."""
    steps = 2**bits - 1
    levels: Tensor = round_ste(values * steps) / steps
    return levels


def normalize_weight(weight: Tensor) -> Tensor:
    """tanh(w) / (2 max|tanh(w)|) + 1/2, within [0, 1]: the inner part of eq. 9."""
    squeezed = weight.tanh()
    return squeezed / (2 * squeezed.abs().max().clamp_min(1e-12)) + 0.5  # clamped for a weight of zeros


def mean_sign(weight: Tensor) -> Tensor:
    """sign(w) mean|w|; the gradient is 1 everywhere: eq. 7 and 8."""
    return (sign(weight) * weight.abs().mean() - weight).detach() + weight
