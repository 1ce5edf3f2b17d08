"""Scales for weights."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.nn.quantized import QParams, calc_qparams, dequantize, quantize, split_groups, weight_code_range

SHARES = torch.linspace(1.0, 0.3, 36)  # of the full range, tried by the least squared error


@torch.no_grad()
def weight_numbers(
    weight: Tensor,
    bits: int,
    granularity: str = "channel",
    group_size: int = 0,
    symmetric: bool = True,
    activation_bits: int | None = None,
    observer: str = "mse",
) -> QParams:
    """Numbers for `weight`, outputs first, beside activations of `activation_bits` (None: not quantized).

    The observer minmax covers every weight; mse draws the range in to where the squared error of a tensor, channel
    or group is least. One bit is {-1, +1} times the mean magnitude, which is its least squared error: Rastegari et
    al. 2016, arXiv:1603.05279, eq. 6.
    """
    low, high = weight_code_range(bits, activation_bits)
    size = group_size if granularity == "group" else 0
    groups = split_groups(weight.detach().float(), granularity, size)
    if bits == 1:
        scale = 2 * groups.abs().mean(2)
        return QParams(bits, scale, torch.full_like(scale, -0.5), low, high, size)
    shares = SHARES if observer == "mse" else SHARES[:1]
    scale, zero_point = least_error(groups, low, high, symmetric, shares)
    return QParams(bits, scale, zero_point, low, high, size)


def least_error(groups: Tensor, low: int, high: int, symmetric: bool, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point `(rows, groups)` of the share of the full range with the least squared error."""
    minimum, maximum = groups.amin(2), groups.amax(2)
    best: tuple[Tensor, Tensor] | None = None
    for share in shares.tolist():
        scale, zero_point = calc_qparams(minimum * share, maximum * share, low, high, symmetric)
        error = squared_error(groups, scale, zero_point, low, high)
        if best is None:
            best, least = (scale, zero_point), error
            continue
        better = error < least
        best = torch.where(better, scale, best[0]), torch.where(better, zero_point, best[1])
        least = torch.where(better, error, least)
    assert best is not None
    return best


def squared_error(groups: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Sum of the squared rounding errors of each group, `(rows, groups)`."""
    scale, zero_point = scale.unsqueeze(2), zero_point.unsqueeze(2)
    codes = quantize(groups, scale, zero_point, low, high)
    return (dequantize(codes, scale, zero_point) - groups).square().sum(2)
