"""A score for each weight of a model, and the masks that keep the weights with the largest ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compression.nn import layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

Scores = dict[str, Tensor]  # layer name -> a score for each weight, in the weight's shape
Masks = dict[str, Tensor]  # layer name -> bool, true where the weight is kept, in the weight's shape


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that can be pruned, those of linear layers and convolutions, by the layer's name."""
    return {name: cast("Tensor", module.weight) for name, module in layers.prunable_layers(model).items()}


def keep_largest(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Masks that keep the weights with the largest scores: the share 1 - `sparsity` over all layers together.

    The count is exact whatever the ties: among equal scores, the first are kept.
    """
    flat = torch.cat([s.flatten() for s in scores.values()])
    keep = torch.zeros_like(flat, dtype=torch.bool)
    # Not torch.kthvalue: a threshold would keep or drop all equal scores at once, such as the -inf of earlier masks.
    order = flat.sort(descending=True, stable=True).indices
    keep[order[: len(flat) - round(sparsity * len(flat))]] = True
    parts = torch.split(keep, [s.numel() for s in scores.values()])
    return {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}


def mask_smallest(model: nn.Module, scores: Scores, sparsity: float) -> None:
    """Mask the share `sparsity` of the weights in `scores` in place, those with the smallest scores.

    Weights that were pruned before come first and stay pruned: their scores become -inf, in place.
    """
    prunable = layers.prunable_layers(model)
    for name, module in layers.masked_layers(model).items():
        if name in scores:
            scores[name].masked_fill_(~cast("Tensor", module.mask).to(scores[name].device), -math.inf)
    for name, keep in keep_largest(scores, sparsity).items():
        intersect_mask(prunable[name], keep)


def intersect_mask(layer: nn.Module, keep: Tensor) -> None:
    """Mask the layer where `keep` (bool, the weight's shape) or its present mask is false.

    A present mask is changed in place: a training's checkpoint may hold the same tensor.
    """
    present = getattr(layer, "mask", None)
    if isinstance(present, Tensor):
        present.logical_and_(keep)
        layers.apply_mask(layer)
    else:
        layers.set_mask(layer, keep)


def prune_counts(sizes: Sequence[int], sparsity: float) -> Iterator[int]:
    """How many weights to prune of each part, near `sparsity` times its size, so that the total is off by < 1."""
    # Each part rounded by itself: half of 3 weights would be 2 in every row, two thirds of the layer.
    total, pruned = 0, 0
    for size in sizes:
        total += size
        yield (target := round(total * sparsity)) - pruned
        pruned = target
