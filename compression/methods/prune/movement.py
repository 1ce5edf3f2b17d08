"""Movement pruning: weights that move towards zero in a training are pruned, whatever their size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.methods.prune.masks.block_scores import BlockGrid, GriddedLayer
from compression.methods.prune.masks.score_based import ScoreBasedPruning
from compression.nn import layers

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Movement(ScoreBasedPruning):
    """Prune single weights by scores learned with them, which rise where a weight moves away from zero.

    Sanh et al. 2020, arXiv:2005.07683: a score's gradient is dL/dW' * W, as though its mask were the score itself
    (eq. 3 and 5); sparsity rises, by the cube as there, between warm-up and cool-down (section 4).
    """

    def groups(self, model: nn.Module) -> list[list[GriddedLayer]]:
        """A block for each weight, a group for each layer."""
        return [[(name, BlockGrid.of_layer(layer, 1, 1))] for name, layer in layers.prunable_layers(model).items()]
