"""Truncated singular value decomposition: a matrix as the product of two narrow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compression.methods.decompose.factorization.candidate import Ranks
from compression.methods.decompose.factorization.costs import Part, Places
from compression.methods.decompose.factorization.decomposition import Decomposition
from compression.methods.decompose.factorization.factors import filled, relative_error
from compression.nn.layers import weight
from compression.params import param

PARTS = ("linear", "pointwise", "embedding")


@dataclass(frozen=True)
class Svd(Decomposition):
    """Linear layers, embeddings and 1x1 convolutions as two layers with few numbers between them.

    Denton et al. 2014, arXiv:1404.0736, section 3.2.1. Of an embedding, a narrower table and a linear layer are left:
    fewer parameters, and a matrix product that was not there before, so target macs leaves embeddings alone.
    """

    kinds: ClassVar[str] = "linear layer, embedding or 1x1 convolution without groups"

    parts_of: tuple[str, ...] = param(PARTS, "kinds of layers to decompose", choices=PARTS)

    def takes(self, layer: nn.Module) -> bool:
        return part_of(layer) in self.parts_of

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        return [weight(layer).flatten(1)]

    def full(self, layer: nn.Module) -> Ranks:
        return (min(weight(layer).shape[:2]),)

    def parts(self, layer: nn.Module, places: Places, ranks: Ranks) -> list[Part]:
        (rows, columns), [rank] = weight(layer).shape[:2], ranks
        if isinstance(layer, nn.Embedding):
            return [(rows * rank, 0), (rank * columns, places.written)]
        return [(columns * rank, places.written), (rank * rows, places.written)]

    def factorised(self, layer: nn.Module, ranks: Ranks, seed: int) -> tuple[nn.Sequential, float, str]:
        left, right, error = truncated(weight(layer).flatten(1), *ranks)
        return BUILD[type(layer)](layer, left, right), error, ""


def part_of(layer: nn.Module) -> str:
    """Under which name of PARTS a layer goes; empty for what stays: groups, tables that rescale themselves."""
    if type(layer) is nn.Linear:
        return "linear"
    if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1:
        return "pointwise"
    return "embedding" if type(layer) is nn.Embedding and layer.max_norm is None else ""


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best `left @ right` of `rank` for a matrix `(m, n)`, `(m, rank)` and `(rank, n)`, and its relative error.

    Eckart and Young 1936. The singular values are shared out evenly, so that both factors train at one pace.
    """
    values = matrix.detach().double()
    wide = values if values.shape[0] <= values.shape[1] else values.T
    # The singular vectors of the short side, the largest last; those of the long side come by projecting. For 4096
    # units that takes a fraction of the time of a whole singular value decomposition.
    basis = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1)
    projected = basis.T @ wide
    root = projected.norm(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(values.dtype).tiny)
    left, right = basis * root.T, projected / root
    if wide is not values:
        left, right = right.T, left.T
    return left, right, relative_error(values, left @ right)


def linear(layer: nn.Linear, left: Tensor, right: Tensor) -> nn.Sequential:
    first = nn.Linear(layer.in_features, len(right), bias=False)
    second = nn.Linear(len(right), layer.out_features, bias=layer.bias is not None)
    return filled([first, second], [right, left], layer.bias)


def pointwise(layer: nn.Conv2d, left: Tensor, right: Tensor) -> nn.Sequential:
    geometry: Any = {"stride": layer.stride, "padding": layer.padding, "padding_mode": layer.padding_mode}
    first = nn.Conv2d(layer.in_channels, len(right), 1, **geometry, bias=False)
    second = nn.Conv2d(len(right), layer.out_channels, 1, bias=layer.bias is not None)
    return filled([first, second], [right, left], layer.bias)


def embedding(layer: nn.Embedding, left: Tensor, right: Tensor) -> nn.Sequential:
    table = nn.Embedding(layer.num_embeddings, len(right), layer.padding_idx)
    return filled([table, nn.Linear(len(right), layer.embedding_dim, bias=False)], [left, right.T], None)


BUILD: dict[type[nn.Module], Any] = {nn.Linear: linear, nn.Conv2d: pointwise, nn.Embedding: embedding}
