"""Wanda: pruning by weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.methods.prune.masks.layerwise import LayerwisePruning, smallest_of_each, smallest_per_row
from compression.methods.prune.masks.scores import prune_counts
from compression.methods.prune.masks.sparsity import layer_sparsities, log_sparsities
from compression.nn import layers
from compression.nn.matrices import from_matrices, mask_matrices

if TYPE_CHECKING:
    from torch import Tensor

    from compression.training.context import Context


@dataclass(frozen=True)
class Wanda(LayerwisePruning):
    """Prune by |weight| times the norm of its input, per output.  Sun et al. 2023, arXiv:2306.11695, eq. 1.

    After training, without any more of it; the weights that stay are not changed. A convolution is taken as the
    linear layer over the patches it sees, and its weights are ranked together.
    """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Prune the layers, in place: one after the other, or with the scope global all at once."""
        if not self.is_global(model):
            return super().apply(model, context)
        # Not one after the other, as sparsegpt: where nothing makes up for what the layers before lost, their inputs
        # tell less. ResNet-32 at 70%: 25.9% of the answers of the whole network then, and 66.4% so.
        before = layer_sparsities(model.eval())
        for layer, keep in self.rank_together(model, context).items():
            layers.set_mask(layer, from_matrices(layer, keep & mask_matrices(layer)))
        log_sparsities(before, model, self.sparsity, context.record)
        return model

    def prune_layer(self, layer: nn.Module, weights: Tensor, moments: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Mask the smallest scores of each output, as the paper does, and of all outputs together in a convolution."""
        # ResNet-32 at 50% of every layer: 68.9% of the answers of the whole network by outputs, 77.1% by layers.
        if self.n_of_m or isinstance(layer, nn.Linear):
            return super().prune_layer(layer, weights, moments, allowed)
        scores = wanda_scores(weights, moments.sqrt().unsqueeze(1)).masked_fill(~allowed, -torch.inf)
        pruned = smallest_per_row(scores.view(1, -1), [round(self.sparsity * scores.numel())])
        return weights, ~pruned.view_as(scores) & allowed

    def input_moment(self, rows: Tensor) -> Tensor:
        """The sum of each input's squares, `(groups, columns)`."""
        return rows.square().sum(1)

    def prune_matrix(self, weight: Tensor, second_moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Mask the smallest scores of each output; the weight is returned as it is."""
        scores = wanda_scores(weight, second_moment.sqrt()).masked_fill(~allowed, -torch.inf)
        if self.n_of_m:
            pruned = smallest_of_each(scores, *self.n_of_m)
        else:
            pruned = smallest_per_row(scores, list(prune_counts([weight.shape[1]] * len(weight), self.sparsity)))
        return weight, ~pruned & allowed


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2 of a weight `(outputs, inputs)` and the norms `(inputs,)` of its inputs over all examples."""
    return weight.abs() * norms
