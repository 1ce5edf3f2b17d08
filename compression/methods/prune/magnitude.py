"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from compression.methods.prune.masks import amounts, scores
from compression.methods.prune.masks.gradual import Gradual
from compression.nn import layers
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class Magnitude(Gradual):
    """Mask single weights, those with the smallest absolute values or random ones.

    Han et al. 2015, arXiv:1506.02626; as torch.nn.utils.prune's l1_unstructured, random_unstructured and, over all
    layers together, global_unstructured. A layer that `layers` names is ranked by itself whatever the scope.
    """

    scope: str = param(
        "global", "rank the weights of all layers together, or layer by layer", choices=("global", "local")
    )
    criterion: str = param("l1", "the weights that go: the smallest (l1) or random ones", choices=("l1", "random"))

    def masks(self, model: nn.Module, shares: Mapping[str, float], context: Context) -> dict[str, Tensor]:
        found = importance(model, self.criterion, context.seed)
        alone = shares if self.scope == "local" else amounts.resolve(self.layers, shares)
        kept = {name: scores.keep_largest({name: found[name]}, shares[name])[name] for name in alone}
        together = {name: found[name] for name in shares if name not in kept}
        return kept | (scores.keep_largest(together, shares[next(iter(together))]) if together else {})


def importance(model: nn.Module, criterion: str, seed: int) -> scores.Scores:
    """|w| (l1), or numbers that the seed draws (random: the same at every call); least where a mask is already."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in scores.weights(model).items():
        drawn = torch.rand(weight.shape, generator=generator).to(weight.device)
        found[name] = weight.detach().abs() if criterion == "l1" else drawn
    for name, layer in layers.masked_layers(model).items():
        found[name] = found[name].masked_fill(~cast(Tensor, layer.mask), -math.inf)
    return found
