"""Chains of plain layers that hold the factors of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def filled(layers: Sequence[Any], weights: Sequence[Tensor], bias: Tensor | None) -> nn.Sequential:
    """The layers in a chain, with these weights (anything that has their number of values), the last with `bias`."""
    for layer, values in zip(layers, weights, strict=True):
        layer.weight.copy_(values.reshape(layer.weight.shape))
    if bias is not None:
        layers[-1].bias.copy_(bias)
    return nn.Sequential(*layers)


def relative_error(weight: Tensor, approximation: Tensor) -> float:
    """||W - W'|| / ||W||; 0 for a weight of zeros that is met."""
    return ((weight - approximation).norm() / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny)).item()
