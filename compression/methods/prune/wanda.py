"""Wanda: weights are judged by themselves and by the activations they meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.methods.prune.masks.layerwise import Layerwise, least, least_of_each
from compression.methods.prune.masks.scores import shares


@dataclass(frozen=True)
class Wanda(Layerwise):
    """Prune by |weight| times the norm of its input, per output.  Sun et al. 2023, arXiv:2306.11695, eq. 1.

    After training, without any more of it; the weights that stay are not changed. A convolution is taken as the
    linear layer over the patches it sees.
    """

    def moment(self, rows: Tensor) -> Tensor:
        return rows.square().sum(1)

    def pruned(self, weight: Tensor, moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        found = importance(weight, moment.sqrt()).masked_fill(~allowed, -torch.inf)
        if self.kept_of:
            gone = least_of_each(found, *self.kept_of)
        else:
            gone = least(found, list(shares([weight.shape[1]] * len(weight), self.sparsity)))
        return weight, ~gone & allowed


def importance(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2 of a weight `(outputs, inputs)` and the norms `(inputs,)` of its inputs over all examples."""
    return weight.abs() * norms
