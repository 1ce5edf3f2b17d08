"""Chains of plain layers that hold the factors of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Factorization(NamedTuple):
    """The layers that replace one, ||W - W'|| / ||W||, and a warning about the fit (empty if it is sound)."""

    layers: nn.Sequential
    error: float
    warning: str = ""


@torch.no_grad()
def chain_of_layers(layers: Sequence[Any], weights: Sequence[Tensor], bias: Tensor | None) -> nn.Sequential:
    """Put `weights` into `layers` (reshaped to fit, so their sizes must agree) and `bias` into the last one."""
    for layer, values in zip(layers, weights, strict=True):
        layer.weight.copy_(values.reshape(layer.weight.shape))
    if bias is not None:
        layers[-1].bias.copy_(bias)
    return nn.Sequential(*layers)


def relative_error(weight: Tensor, approximation: Tensor) -> float:
    """||W - W'|| / ||W||; 0 for a weight of zeros that is met exactly."""
    smallest = torch.finfo(weight.dtype).tiny
    return float((weight - approximation).norm() / weight.norm().clamp_min(smallest))
