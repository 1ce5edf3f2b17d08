"""What integers mean: `value = scale * (code - zero_point)`. Jacob et al. 2018, arXiv:1712.05877, eq. 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# CPUs without VNNI multiply unsigned by signed bytes in pairs and keep the sum of a pair in 16 bits, saturating in
# silence (vpmaddubsw). Codes that keep every pair within this bound give the exact sum on every CPU.
PAIR_SUM = 2**15 - 1
# Sums of a row and biases each stay below half of what the 32-bit accumulator holds.
ROW_SUM = 2**30


@dataclass(frozen=True)
class Numbers:
    """What a quantizer chooses for one tensor: `bits`, the codes `low`..`high` used of them, scales, zero points.

    Of a weight, `scale` and `zero_point` are `(rows, groups)` as `split` cuts it: `(1, 1)` per tensor, `(outputs, 1)`
    per channel, more columns per group of `group_size` weights. Of an activation both are scalars and the codes are
    unsigned. A zero point of a half puts the levels at odd multiples of half a step, with none at zero: {-1, +1}
    for one bit.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    group_size: int = 0

    @property
    def granularity(self) -> str:
        """tensor, channel or group."""
        if self.group_size:
            return "group"
        return "tensor" if self.scale.numel() == 1 else "channel"

    @property
    def levels(self) -> str:
        """symmetric (all zero points 0), odd (halves) or affine."""
        if (self.zero_point % 1 != 0).any():
            return "odd"
        return "affine" if (self.zero_point != 0).any() else "symmetric"


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code of `bits` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def weight_range(bits: int, activation_bits: int | None) -> tuple[int, int]:
    """Lowest and highest code a weight may use beside activations of `activation_bits` (None: not quantized).

    Eight bits beside eight become -64..64, so that no pair of products saturates: see `PAIR_SUM`.
    """
    low, high = code_range(bits, signed=True)
    if activation_bits is None:
        return low, high
    limit = PAIR_SUM // (2 * (2**activation_bits - 1))
    return max(low, -limit), min(high, limit)


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Codes of `values`, as floats: rounded to the nearest level, ties to even as in ONNX, clamped to low..high.

    Beside a zero point of a half the level above is taken: with one bit, 0 becomes +1.
    """
    whole = zero_point.floor()
    steps = values / scale
    rounded = torch.where(zero_point == whole, steps.round(), steps.floor() + 1)
    return (rounded + whole).clamp(low, high)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values that `codes` stand for."""
    return (codes - zero_point) * scale


def choose_range(minimum: Tensor, maximum: Tensor, low: int, high: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point (both float32) that spread the codes low..high over minimum..maximum.

    Zero is always a level: Jacob et al. 2018, section 2.1. Symmetric puts it in the middle of the codes.
    """
    minimum, maximum = minimum.clamp(max=0.0), maximum.clamp(min=0.0)
    if symmetric:
        middle = (low + high + 1) // 2
        above = maximum / (high - middle) if high > middle else torch.zeros_like(maximum)
        scale = usable(torch.maximum(above, minimum / (low - middle)))
        return scale, torch.full_like(scale, middle)
    scale = usable((maximum - minimum) / (high - low))
    return scale, (low - minimum / scale).round().clamp(low, high)


def usable(scale: Tensor) -> Tensor:
    """`scale` with 1 where it is zero or too small to divide by: there all values are zero."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def split(weight: Tensor, granularity: str, group_size: int = 0) -> Tensor:
    """The weight as `(rows, groups, size)`, whose numbers share a scale within the last dimension.

    Groups run along the inputs of an output; the last is filled up with zeros.
    """
    if granularity == "tensor":
        return weight.reshape(1, 1, -1)
    rows = weight.flatten(1)
    if granularity == "channel":
        return rows.unsqueeze(1)
    return F.pad(rows, (0, -rows.shape[1] % group_size)).unflatten(1, (-1, group_size))


def merge(groups: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The tensor of `shape` that `split` cut into `groups`."""
    if len(groups) != shape[0]:
        return groups.reshape(shape)
    columns = torch.Size(shape[1:]).numel()
    return groups.flatten(1)[:, :columns].reshape(shape)


def require_exact(codes: Tensor, highest_input: int) -> None:
    """ValueError if integer kernels could saturate on the weight codes `(rows, columns)`.

    `highest_input` is the largest unsigned code of an activation.
    """
    sizes = codes.to(torch.int64).abs()
    largest, row = int(sizes.max()), int(sizes.sum(1).max())
    if 2 * largest * highest_input > PAIR_SUM:
        raise ValueError(
            f"weight codes up to {largest} beside activations up to {highest_input} saturate in pairs on CPUs without "
            f"VNNI; use codes up to {PAIR_SUM // (2 * highest_input)} (weight_range gives them)"
        )
    if row * highest_input > ROW_SUM:
        raise ValueError(f"a row of weight codes sums to {row}, which overflows 32 bits beside {highest_input}")
