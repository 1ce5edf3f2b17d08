"""Quantization parameters: `value = scale * (code - zero_point)`. Jacob et al. 2018, arXiv:1712.05877, eq. 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# CPUs without VNNI multiply unsigned by signed bytes in pairs and keep the sum of a pair in 16 bits, saturating in
# silence (vpmaddubsw). Codes that keep every pair within this bound give the exact sum on every CPU: beside activations
# of 8 bits, -64..64 (2 * 64 * 255 = 32,640).
MAX_PAIR_SUM = 2**15 - 1
# Sums of a row and biases each stay below half of what the 32-bit accumulator holds.
MAX_ROW_SUM = 2**30


@dataclass(frozen=True)
class QParams:
    """The quantization parameters of one tensor: bit width, range of codes `low`..`high`, scales and zero points.

    For a weight, `scale` and `zero_point` are `(rows, groups)`, the first dimensions of `split_groups`: `(1, 1)` per
    tensor, `(outputs, 1)` per channel, more columns per group of `group_size` weights. For an activation both are
    scalars and the codes are unsigned. A zero point of a half makes a mid-rise quantizer, whose values are odd
    multiples of half a step and never zero: {-1, +1} for one bit.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    group_size: int = 0

    @property
    def granularity(self) -> str:
        """What shares a scale: `tensor`, `channel` or `group`."""
        if self.group_size:
            return "group"
        return "tensor" if self.scale.numel() == 1 else "channel"

    @property
    def qscheme(self) -> str:
        """`symmetric` (all zero points are 0), `odd` (mid-rise: they are halves) or `affine`."""
        if (self.zero_point % 1 != 0).any():
            return "odd"
        return "affine" if (self.zero_point != 0).any() else "symmetric"


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and highest code of `bits` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def weight_code_range(bits: int, activation_bits: int | None) -> tuple[int, int]:
    """Return the lowest and highest code of a weight multiplied with activations of `activation_bits` (None: floats).

    With 8 bits for both, weights get -64..64, so that no pair of products saturates: see `MAX_PAIR_SUM`.
    """
    low, high = code_range(bits, signed=True)
    if activation_bits is None:
        return low, high
    limit = MAX_PAIR_SUM // (2 * (2**activation_bits - 1))
    return max(low, -limit), min(high, limit)


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Return the codes of `values` in their shape, as floats: rounded half to even as in ONNX, clamped to low..high.

    With a zero point of a half, a tie goes to the code above: with one bit, 0 becomes +1. `scale` and `zero_point`
    broadcast against `values`.
    """
    integer_part = zero_point.floor()
    steps = values / scale
    # Levels at halves: the one within (n, n + 1) steps is n + 1/2, and its code n + 1/2 + zero_point.
    rounded = torch.where(zero_point == integer_part, steps.round(), steps.floor() + 1)
    return (rounded + integer_part).clamp(low, high)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the values that `codes` represent, in their shape; `scale` and `zero_point` broadcast."""
    return (codes - zero_point) * scale


def calc_qparams(minimum: Tensor, maximum: Tensor, low: int, high: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, float32 in the shape of `minimum`, that map the codes low..high to minimum..maximum.

    Zero always has a code of its own: Jacob et al. 2018, section 2.1. `symmetric` gives it the middle code.
    """
    minimum, maximum = minimum.clamp(max=0.0), maximum.clamp(min=0.0)
    if symmetric:
        middle = (low + high + 1) // 2
        # Above the middle there may be a code less than below it (127 and 128): the larger of the two sides' scales
        # clips neither. One bit (0..1) has no code above its middle.
        above = maximum / (high - middle) if high > middle else torch.zeros_like(maximum)
        scale = nonzero_scale(torch.maximum(above, minimum / (low - middle)))
        return scale, torch.full_like(scale, middle)
    scale = nonzero_scale((maximum - minimum) / (high - low))
    return scale, (low - minimum / scale).round().clamp(low, high)


def nonzero_scale(scale: Tensor) -> Tensor:
    """Replace scales that are zero or too small to divide by, which belong to values that are all zero, by 1."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def split_groups(weight: Tensor, granularity: str, group_size: int = 0) -> Tensor:
    """Reshape the weight to `(rows, groups, size)`, so that the entries of the last dimension share a scale.

    Groups divide the inputs of each output channel; the last group is padded with zeros.
    """
    if granularity == "tensor":
        return weight.reshape(1, 1, -1)
    rows = weight.flatten(1)
    if granularity == "channel":
        return rows.unsqueeze(1)
    return F.pad(rows, (0, -rows.shape[1] % group_size)).reshape(len(rows), -1, group_size)


def merge_groups(groups: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Undo `split_groups`: return the tensor of `shape` that `groups` was made from."""
    # Per tensor: a single row. With one output it is that output's, and both ways give the same.
    if len(groups) != shape[0]:
        return groups.reshape(shape)
    columns = torch.Size(shape[1:]).numel()
    return groups.flatten(1)[:, :columns].reshape(shape)


def require_exact_sums(codes: Tensor, largest_input: int) -> None:
    """Raise ValueError if integer kernels could saturate or overflow on the weight codes `(rows, columns)`.

    `largest_input` is the largest unsigned code of an activation.
    """
    magnitudes = codes.to(torch.int64).abs()
    largest, row = int(magnitudes.max()), int(magnitudes.sum(1).max())
    if 2 * largest * largest_input > MAX_PAIR_SUM:
        raise ValueError(
            f"weight codes up to {largest} with activations up to {largest_input} saturate in pairs on CPUs without "
            f"VNNI; use codes up to {MAX_PAIR_SUM // (2 * largest_input)} (weight_code_range gives them)"
        )
    if row * largest_input > MAX_ROW_SUM:
        raise ValueError(
            f"a row of weight codes sums to {row}, which overflows 32 bits with activations up to {largest_input}"
        )
