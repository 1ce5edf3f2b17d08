"""Rounding with straight-through estimators: the forward pass rounds, the backward pass does as if it did not.

Bengio et al. 2013, arXiv:1308.3432.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.nn.quantized import dequantize, quantize


def round_ste(values: Tensor) -> Tensor:
    """`values` rounded to whole numbers; the gradient is 1 everywhere."""
    return (values.round() - values).detach() + values


def sign(values: Tensor) -> Tensor:
    """-1 or +1; +1 for zero, as in Courbariaux et al. 2016, arXiv:1602.02830, eq. 1."""
    return torch.where(values >= 0, 1.0, -1.0)


def sign_ste(values: Tensor) -> Tensor:
    """The sign; the gradient is 1 where |x| <= 1 and 0 elsewhere: Courbariaux et al. 2016, eq. 4."""
    clipped = values.clamp(-1, 1)
    return (sign(values) - clipped).detach() + clipped


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """`values` at their nearest levels; the gradient is 1 within the range of the codes low..high and 0 outside."""
    rounded = dequantize(quantize(values, scale, zero_point, low, high), scale, zero_point)
    clipped = torch.clamp(values, (low - zero_point) * scale, (high - zero_point) * scale)
    return (rounded - clipped).detach() + clipped
