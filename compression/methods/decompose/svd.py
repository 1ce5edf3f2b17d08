"""Truncated singular value decomposition: a matrix as the product of two narrow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from compression.methods.decompose.factorization.costs import FactorSize, FeatureMapSizes
from compression.methods.decompose.factorization.decomposition import Decomposition
from compression.methods.decompose.factorization.factors import Factorization, chain_of_layers, relative_error
from compression.nn.layers import weight
from compression.params import param

if TYPE_CHECKING:
    from compression.methods.decompose.factorization.candidate import Ranks

LAYER_KINDS = ("linear", "pointwise", "embedding")


@dataclass(frozen=True)
class Svd(Decomposition):
    """Replace linear layers, embeddings and 1x1 convolutions by two layers with fewer features between them.

    Denton et al. 2014, arXiv:1404.0736, section 3.2.1. An embedding becomes a narrower table and a linear layer: fewer
    parameters, but a matrix product that was not there before, so that rank=macs leaves embeddings as they are.
    """

    kinds: ClassVar[str] = "linear layer, embedding or 1x1 convolution without groups"

    parts_of: tuple[str, ...] = param(LAYER_KINDS, "kinds of layers to decompose", choices=LAYER_KINDS)

    def can_decompose(self, layer: nn.Module) -> bool:
        """Layers of the kinds in `parts_of`."""
        return layer_kind(layer) in self.parts_of

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        """The weight itself as a matrix `(rows, columns)`."""
        return [weight(layer).flatten(1)]

    def full_ranks(self, layer: nn.Module) -> Ranks:
        """The shorter side of the matrix."""
        return (min(weight(layer).shape[:2]),)

    def factor_sizes(self, layer: nn.Module, sizes: FeatureMapSizes, ranks: Ranks) -> list[FactorSize]:
        """Sizes of the two layers; looking up a table's rows multiplies nothing."""
        (rows, columns), [rank] = weight(layer).shape[:2], ranks
        if isinstance(layer, nn.Embedding):
            return [FactorSize(rows * rank, 0), FactorSize(rank * columns, sizes.output)]
        # At output positions: a 1x1 convolution's stride is in the first factor, so both run on the smaller map.
        return [FactorSize(columns * rank, sizes.output), FactorSize(rank * rows, sizes.output)]

    def factorize(self, layer: nn.Module, ranks: Ranks, seed: int) -> Factorization:  # noqa: ARG002 - the base's signature
        """Truncate the singular value decomposition of the weight."""
        left, right, error = truncated_svd(weight(layer).flatten(1), *ranks)
        return Factorization(BUILD[type(layer)](layer, left, right), error)


def layer_kind(layer: nn.Module) -> str:
    """Which of LAYER_KINDS a layer is; empty for others, grouped convolutions and embeddings with `max_norm`."""
    if type(layer) is nn.Linear:
        return "linear"
    if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1:
        return "pointwise"
    return "embedding" if type(layer) is nn.Embedding and layer.max_norm is None else ""


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors `(m, rank)` and `(rank, n)` whose product is nearest to a matrix `(m, n)`, and the relative error.

    Eckart and Young 1936. Both factors get the square root of the singular values, so that they train at one pace.
    """
    # In double: the product below squares the singular values, and float32 would lose those under 3e-4 of the largest.
    values = matrix.detach().double()
    wide = values if values.shape[0] <= values.shape[1] else values.T
    # Only the singular vectors of the short side are computed, in ascending order; projecting gives those of the long
    # side. For 4096 units that takes a fraction of the time of a complete singular value decomposition.
    basis = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1)
    projected = basis.T @ wide
    root = projected.norm(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(values.dtype).tiny)  # (rank, 1)
    left, right = basis * root.T, projected / root
    if wide is not values:
        left, right = right.T, left.T
    return left, right, relative_error(values, left @ right)


def factor_linear(layer: nn.Linear, left: Tensor, right: Tensor) -> nn.Sequential:
    """Two linear layers, the second with the bias; `left` `(out, rank)`, `right` `(rank, in)`."""
    first = nn.Linear(layer.in_features, len(right), bias=False)
    second = nn.Linear(len(right), layer.out_features, bias=layer.bias is not None)
    return chain_of_layers([first, second], [right, left], layer.bias)


def factor_pointwise(layer: nn.Conv2d, left: Tensor, right: Tensor) -> nn.Sequential:
    """Two 1x1 convolutions, the first with the stride and padding; `left` `(out, rank)`, `right` `(rank, in)`."""
    geometry: Any = {"stride": layer.stride, "padding": layer.padding, "padding_mode": layer.padding_mode}
    first = nn.Conv2d(layer.in_channels, len(right), 1, **geometry, bias=False)
    second = nn.Conv2d(len(right), layer.out_channels, 1, bias=layer.bias is not None)
    return chain_of_layers([first, second], [right, left], layer.bias)


def factor_embedding(layer: nn.Embedding, left: Tensor, right: Tensor) -> nn.Sequential:
    """A table `left` `(rows, rank)` and a linear layer from `right` `(rank, columns)`."""
    table = nn.Embedding(layer.num_embeddings, len(right), layer.padding_idx)
    return chain_of_layers([table, nn.Linear(len(right), layer.embedding_dim, bias=False)], [left, right.T], None)


BUILD: dict[type[nn.Module], Any] = {
    nn.Linear: factor_linear,
    nn.Conv2d: factor_pointwise,
    nn.Embedding: factor_embedding,
}
