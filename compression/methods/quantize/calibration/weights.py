"""Quantization parameters of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.nn.quantized import (
    ActivationScheme,
    QParams,
    QuantConv2d,
    QuantLinear,
    calc_qparams,
    dequantize,
    merge_groups,
    quantize,
    split_groups,
    weight_code_range,
)

SHARES = torch.linspace(1.0, 0.3, 36)  # of the full range: the candidates of the observer mse


@torch.no_grad()
def weight_qparams(
    weight: Tensor,
    bits: int,
    granularity: str = "channel",
    group_size: int = 0,
    symmetric: bool = True,
    activation_bits: int | None = None,
    observer: str = "mse",
) -> QParams:
    """Quantization parameters of `weight` `(outputs, …)` for inputs of `activation_bits` (None: not quantized).

    The observer minmax covers every weight; mse clips the range to where the squared error of a tensor, channel or
    group is least. One bit is {-1, +1} times the mean magnitude, which has the least squared error: Rastegari et al.
    2016, arXiv:1603.05279, eq. 6.
    """
    low, high = weight_code_range(bits, activation_bits)
    size = group_size if granularity == "group" else 0
    groups = split_groups(weight.detach().float(), granularity, size)
    if bits == 1:
        scale = 2 * groups.abs().mean(2)
        return QParams(bits, scale, torch.full_like(scale, -0.5), low, high, size)
    shares = SHARES if observer == "mse" else SHARES[:1]
    scale, zero_point = least_error_range(groups, low, high, symmetric, shares)
    return QParams(bits, scale, zero_point, low, high, size)


def least_error_range(groups: Tensor, low: int, high: int, symmetric: bool, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point `(rows, groups)` of the share of each group's range with the least squared error.

    `groups` is `(rows, groups, size)`, and `shares` `(candidates,)`.
    """
    minimum, maximum = groups.amin(2), groups.amax(2)
    best_scale, best_zero_point, least = minimum, maximum, torch.full_like(minimum, torch.inf)
    # One candidate at a time: all at once would take 36 times the weight's memory.
    for number, share in enumerate(shares.tolist()):
        scale, zero_point = calc_qparams(minimum * share, maximum * share, low, high, symmetric)
        error = squared_error(groups, scale, zero_point, low, high)
        better = (error < least) | (number == 0)  # the first also where its error overflows
        best_scale = torch.where(better, scale, best_scale)
        best_zero_point = torch.where(better, zero_point, best_zero_point)
        least = torch.where(better, error, least)
    return best_scale, best_zero_point


def squared_error(groups: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Sum of the squared quantization errors of each group, `(rows, groups)`."""
    scale, zero_point = scale.unsqueeze(2), zero_point.unsqueeze(2)
    codes = quantize(groups, scale, zero_point, low, high)
    return (dequantize(codes, scale, zero_point) - groups).square().sum(2)


def quantize_dequantize(weight: Tensor, qparams: QParams) -> Tensor:
    """`weight` at the nearest levels of `qparams`."""
    groups = split_groups(weight, qparams.granularity, qparams.group_size)
    scale, zero_point = qparams.scale.unsqueeze(2), qparams.zero_point.unsqueeze(2)
    codes = quantize(groups, scale, zero_point, qparams.low, qparams.high)
    return merge_groups(dequantize(codes, scale, zero_point), weight.shape)


def quantize_layer(
    layer: nn.Linear | nn.Conv2d, weight: QParams, activation: ActivationScheme = None, codes: Tensor | None = None
) -> QuantLinear | QuantConv2d:
    """The integer form of a linear layer or convolution with these parameters for its weight and its input.

    `codes`, in the weight's shape, replace rounding to the nearest.
    """
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d.from_float(layer, weight, activation, codes)
    return QuantLinear.from_float(layer, weight, activation, codes)
