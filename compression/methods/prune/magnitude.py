"""Magnitude pruning: the weights with the smallest absolute values are pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from compression.methods.prune.masks.scheduled import ScheduledPruning
from compression.methods.prune.masks.scores import Masks, Scores, keep_largest, prunable_weights
from compression.methods.prune.masks.sparsity import layer_targets
from compression.nn import layers
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from compression.training.context import Context


@dataclass(frozen=True)
class Magnitude(ScheduledPruning):
    """Mask single weights, those with the smallest absolute values or random ones.

    Han et al. 2015, arXiv:1506.02626; as torch.nn.utils.prune's l1_unstructured, random_unstructured and, over all
    layers together, global_unstructured. A layer that `layers` names is ranked by itself whatever the scope.
    """

    scope: str = param(
        "global", "rank the weights of all layers together, or layer by layer", choices=("global", "local")
    )
    criterion: str = param("l1", "weights to prune: the smallest (l1) or random ones", choices=("l1", "random"))

    def masks(self, model: nn.Module, sparsities: Mapping[str, float], context: Context) -> Masks:
        """Rank each layer with a sparsity of its own by itself, and the others together."""
        scores = magnitude_scores(model, self.criterion, context.seed)
        alone = sparsities if self.scope == "local" else layer_targets(self.layers, sparsities)
        masks = {name: keep_largest({name: scores[name]}, sparsities[name])[name] for name in alone}
        if together := {name: scores[name] for name in sparsities if name not in masks}:
            masks |= keep_largest(together, sparsities[next(iter(together))])
        return masks


def magnitude_scores(model: nn.Module, criterion: str, seed: int) -> Scores:
    """|w| (l1), or numbers drawn from the seed (random: the same at every call); -inf where a mask has pruned."""
    # The same seed at every update of a schedule, so that one random order is pruned further and further.
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, weight in prunable_weights(model).items():
        if criterion == "l1":
            scores[name] = weight.detach().abs()
        else:
            scores[name] = torch.rand(weight.shape, generator=generator).to(weight.device)
    for name, layer in layers.masked_layers(model).items():
        scores[name] = scores[name].masked_fill(~cast("Tensor", layer.mask), -math.inf)
    return scores
