"""CP decomposition: a convolution as four of which none mixes channels and pixels at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import torch
from tensorly import backend_context
from tensorly.decomposition import parafac
from torch import Tensor, nn

from compression.methods.decompose.factorization.candidate import Candidate, Ranks
from compression.methods.decompose.factorization.costs import Part, Places
from compression.methods.decompose.factorization.decomposition import Decomposition
from compression.methods.decompose.factorization.factors import filled, relative_error
from compression.nn.layers import weight
from compression.params import param

# On the factors of a kernel of norm 1. Without it components grow and cancel each other: on a 64x32x3x3 kernel at rank
# 80, 1e-3 made them 2 times as large as their sum instead of 18, at the same error; 3e-3 made that a seventh larger.
RIDGE = 5e-4
CONVERGED = 1e-4  # change of the relative error from one round to the next
DEGENERATE = 10.0  # squared norms of the components over that of their sum: beyond it a warning


@dataclass(frozen=True)
class Cp(Decomposition):
    """Each convolution as 1x1 to `rank` channels, a column and a row of the kernel on each alone, 1x1 to the outputs.

    Lebedev et al. 2015, arXiv:1412.6553, fitted by alternating least squares with a small ridge. A best CP
    decomposition need not exist: a fit that does not settle, or whose components grow and cancel, is said. The rank by
    evbmf or energy is the larger one of the two channel unfoldings, less than which no CP rank can be; ratio and the
    targets count from the rank at which nothing is saved. Convolutions of one row or column, and of groups, stay.
    """

    kinds: ClassVar[str] = "convolution of at least 2x2 without groups"

    rounds: int = param(100, "rounds of alternating least squares, at most", interval="[1, inf)")

    def takes(self, layer: nn.Module) -> bool:
        return type(layer) is nn.Conv2d and layer.groups == 1 and min(layer.kernel_size) > 1

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        return [weight(layer).flatten(1), weight(layer).transpose(0, 1).flatten(1)]

    def full(self, layer: nn.Module) -> Ranks:
        return (max(1, weight(layer).numel() // sum(weight(layer).shape)),)

    def joined(self, ranks: Ranks) -> Ranks:
        return (max(ranks),)

    def at(self, found: Candidate, share: float) -> Ranks:
        return (math.ceil(share * found.full[0]),)

    def parts(self, layer: nn.Module, places: Places, ranks: Ranks) -> list[Part]:
        (outputs, inputs, rows, columns), [rank] = weight(layer).shape, ranks
        ends = (inputs * rank, places.read), (outputs * rank, places.written)
        return [ends[0], (rows * rank, places.between), (columns * rank, places.written), ends[1]]

    def factorised(self, layer: nn.Module, ranks: Ranks, seed: int) -> tuple[nn.Sequential, float, str]:
        factors, settled = fitted(weight(layer), ranks[0], self.rounds, seed)
        error, cancelling = relative_error(weight(layer).double(), product(factors)), cancellation(factors)
        assert isinstance(layer, nn.Conv2d)
        return chain(layer, factors), error, doubt(settled, cancelling, self.rounds)


def fitted(kernel: Tensor, rank: int, rounds: int, seed: int) -> tuple[list[Tensor], bool]:
    """Factors `(out, rank)`, `(in, rank)`, `(h, rank)`, `(w, rank)` of a kernel `(out, in, h, w)`.

    The second answer is whether they settled. In double precision; the norm of each component is shared out evenly
    over its four columns.
    """
    values = kernel.detach().double().cpu().numpy()
    if not (norm := np.linalg.norm(values)):
        return [torch.zeros(side, rank, dtype=torch.float64, device=kernel.device) for side in kernel.shape], True
    errors = [math.inf]
    with backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to compute SVD")  # components beyond a side start at random, as meant
        _, factors = parafac(
            values / norm,
            rank,
            n_iter_max=rounds,
            tol=CONVERGED,
            random_state=seed,
            l2_reg=RIDGE,
            callback=lambda _, error: errors.append(float(error)),
        )
    made = [torch.from_numpy(np.asarray(factor)).to(kernel.device) for factor in factors]
    return balanced(made, float(norm)), abs(errors[-2] - errors[-1]) < CONVERGED


def balanced(factors: Sequence[Tensor], norm: float) -> list[Tensor]:
    """The same components times `norm`, each with the same norm in all its columns."""
    norms = [factor.norm(dim=0).clamp_min(torch.finfo(factor.dtype).tiny) for factor in factors]
    shared = (norm * reduce(torch.mul, norms)) ** (1 / len(factors))
    return [factor / own * shared for factor, own in zip(factors, norms, strict=True)]


def product(factors: Sequence[Tensor]) -> Tensor:
    """The kernel `(out, in, h, w)` that the factors stand for; Lebedev et al. 2015, eq. 3."""
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


def cancellation(factors: Sequence[Tensor]) -> float:
    """The squared norms of the components over that of their sum: 1 if they are orthogonal, large if they cancel."""
    components = reduce(torch.mul, (factor.square().sum(0) for factor in factors)).sum()
    return (components / product(factors).square().sum().clamp_min(torch.finfo(components.dtype).tiny)).item()


def doubt(settled: bool, cancelling: float, rounds: int) -> str:
    """What is to be said against a fit; nothing if it is sound."""
    said = []
    if not settled:
        said.append(f"the CP fit did not settle in {rounds} rounds, more may bring a smaller error")
    if cancelling > DEGENERATE:
        said.append(f"its components are {cancelling:.0f} times as large as what they add up to and train badly")
    return "; ".join([*said, "another rank may fit better, or tucker."] if said else [])


def chain(layer: nn.Conv2d, factors: Sequence[Tensor]) -> nn.Sequential:
    """The four convolutions, Lebedev et al. 2015, eqs. 5 to 8: rows first, then columns, each with its own stride."""
    outputs, inputs, rows, columns = factors
    rank, mode = outputs.shape[1], layer.padding_mode
    made = [
        nn.Conv2d(layer.in_channels, rank, 1, bias=False),
        nn.Conv2d(rank, rank, (len(rows), 1), **along(layer, 0), groups=rank, bias=False, padding_mode=mode),
        nn.Conv2d(rank, rank, (1, len(columns)), **along(layer, 1), groups=rank, bias=False, padding_mode=mode),
        nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None),
    ]
    return filled(made, [inputs.T, rows.T, columns.T, outputs], layer.bias)


def along(layer: nn.Conv2d, axis: int) -> dict[str, Any]:
    """Stride, padding and dilation of `layer` along one axis alone."""

    def one(pair: Any, other: int) -> Any:
        return pair if isinstance(pair, str) else tuple(pair[i] if i == axis else other for i in (0, 1))

    return {"stride": one(layer.stride, 1), "padding": one(layer.padding, 0), "dilation": one(layer.dilation, 1)}
