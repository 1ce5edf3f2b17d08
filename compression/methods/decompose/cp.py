"""CP decomposition: a convolution as four of which each mixes either channels, rows or columns."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from tensorly import backend_context
from tensorly.decomposition import parafac
from torch import Tensor, nn

from compression.methods.decompose.factorization.costs import FactorSize, FeatureMapSizes
from compression.methods.decompose.factorization.decomposition import Decomposition
from compression.methods.decompose.factorization.factors import Factorization, chain_of_layers, relative_error
from compression.nn.layers import weight
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.methods.decompose.factorization.candidate import Candidate, Ranks

# L2 penalty on the factors of a kernel of norm 1. Without it components grow and cancel each other: on a 64x32x3x3
# kernel at rank 80, 1e-3 made them 2 times as large as their sum instead of 18, at the same error; 3e-3 raised the
# error by a seventh.
RIDGE = 5e-4
CONVERGED = 1e-4  # change of the relative error from one round to the next at which the fit ends
DEGENERATE = 10.0  # squared norms of the components over that of their sum: a warning above this


@dataclass(frozen=True)
class Cp(Decomposition):
    """Replace convolutions by a 1x1 to `rank` channels, a vertical and a horizontal depthwise one, and a 1x1 back.

    Lebedev et al. 2015, arXiv:1412.6553, fitted by alternating least squares with a small ridge. A best CP
    decomposition need not exist: where the fit does not converge, or its components grow and cancel, a warning says so.
    With evbmf and energy the rank is the larger one of the two channel unfoldings, a lower bound of the CP rank; ratio
    and targets count from the rank at which nothing is saved. Convolutions of one row or column, and of groups, stay.
    """

    kinds: ClassVar[str] = "convolution of at least 2x2 without groups"

    rounds: int = param(100, "maximum number of rounds of alternating least squares", interval="[1, inf)")

    def can_decompose(self, layer: nn.Module) -> bool:
        """Convolutions without groups whose kernel has at least two rows and columns."""
        return type(layer) is nn.Conv2d and layer.groups == 1 and min(layer.kernel_size) > 1

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        """The unfoldings `(out, in * h * w)` and `(in, out * h * w)` along the channels."""
        return [weight(layer).flatten(1), weight(layer).transpose(0, 1).flatten(1)]

    def full_ranks(self, layer: nn.Module) -> Ranks:
        """The largest rank at which the four convolutions have no more weights than the kernel."""
        # rank (out + in + h + w) weights against out in h w.
        return (max(1, weight(layer).numel() // sum(weight(layer).shape)),)

    def combine_ranks(self, ranks: Ranks) -> Ranks:
        """The larger of the unfoldings' ranks, as no CP rank can be lower."""
        return (max(ranks),)

    def ranks_at(self, candidate: Candidate, share: float) -> Ranks:
        """A share of the full rank: there is no energy by CP rank."""
        return (math.ceil(share * candidate.full_ranks[0]),)

    def factor_sizes(self, layer: nn.Module, sizes: FeatureMapSizes, ranks: Ranks) -> list[FactorSize]:
        """Sizes of the 1x1, vertical, horizontal and 1x1 convolution."""
        (outputs, inputs, rows, columns), [rank] = weight(layer).shape, ranks
        return [
            FactorSize(inputs * rank, sizes.input),
            FactorSize(rows * rank, sizes.between),
            FactorSize(columns * rank, sizes.output),
            FactorSize(outputs * rank, sizes.output),
        ]

    def factorize(self, layer: nn.Module, ranks: Ranks, seed: int) -> Factorization:
        """Fit the kernel by alternating least squares, started from SVD and, past a side's size, from `seed`."""
        factors, converged = fit_cp(weight(layer), ranks[0], self.rounds, seed)
        error = relative_error(weight(layer).double(), reconstruct(factors))
        assert isinstance(layer, nn.Conv2d)
        return Factorization(
            factor_layers(layer, factors), error, fit_warning(converged, cancellation(factors), self.rounds)
        )


def fit_cp(kernel: Tensor, rank: int, rounds: int, seed: int) -> tuple[list[Tensor], bool]:
    """Factors `(out, rank)`, `(in, rank)`, `(h, rank)`, `(w, rank)` of a kernel `(out, in, h, w)`, in double precision.

    Each component has the same norm in its four columns. The second value says whether the fit converged.
    """
    values = kernel.detach().double().cpu().numpy()
    if not (norm := np.linalg.norm(values)):
        return [torch.zeros(side, rank, dtype=torch.float64, device=kernel.device) for side in kernel.shape], True
    errors = [math.inf]
    # For this thread alone: another one's tensorly keeps its backend.
    with backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to compute SVD")  # past a side's size they start at random, as meant
        _, factors = parafac(
            # Of norm 1, so that RIDGE weighs the same for every kernel.
            values / norm,
            rank,
            n_iter_max=rounds,
            tol=CONVERGED,
            random_state=seed,
            l2_reg=RIDGE,
            callback=lambda _, error: errors.append(float(error)),
        )
    made = [torch.from_numpy(np.asarray(factor)).to(kernel.device) for factor in factors]
    return balance_norms(made, float(norm)), abs(errors[-2] - errors[-1]) < CONVERGED


def balance_norms(factors: Sequence[Tensor], norm: float) -> list[Tensor]:
    """The same components times `norm`, each with one norm in all its columns; factors `(side, rank)`."""
    norms = [factor.norm(dim=0).clamp_min(torch.finfo(factor.dtype).tiny) for factor in factors]
    # (rank,): the fourth root of the component's norm, which is the product of its columns'.
    shared = (norm * reduce(torch.mul, norms)) ** (1 / len(factors))
    return [factor / own * shared for factor, own in zip(factors, norms, strict=True)]


def reconstruct(factors: Sequence[Tensor]) -> Tensor:
    """The kernel `(out, in, h, w)` that the factors make up; Lebedev et al. 2015, eq. 3."""
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


def cancellation(factors: Sequence[Tensor]) -> float:
    """Squared norms of the components over that of their sum: 1 if they are orthogonal, large if they cancel."""
    # The squared norm of a rank-one tensor is the product of those of its columns: no component is built.
    components = reduce(torch.mul, (factor.square().sum(0) for factor in factors)).sum()
    return float(components / reconstruct(factors).square().sum().clamp_min(torch.finfo(components.dtype).tiny))


def fit_warning(converged: bool, cancelling: float, rounds: int) -> str:
    """A sentence about a fit that did not converge or whose components cancel; empty if it is sound."""
    problems = []
    if not converged:
        problems.append(f"the CP fit did not converge in {rounds} rounds, more may give a smaller error")
    if cancelling > DEGENERATE:
        problems.append(f"its components are {cancelling:.0f} times as large as their sum and train badly")
    return "; ".join([*problems, "another rank may fit better, or tucker."] if problems else [])


def factor_layers(layer: nn.Conv2d, factors: Sequence[Tensor]) -> nn.Sequential:
    """The four convolutions, Lebedev et al. 2015, eqs. 5 to 8: the vertical one before the horizontal one."""
    outputs, inputs, rows, columns = factors
    rank, mode = outputs.shape[1], layer.padding_mode
    made = [
        # Padding along one axis at a time gives what padding both at once does: the vertical convolution mixes no
        # columns, and without a bias it makes zeros of padded zeros.
        nn.Conv2d(layer.in_channels, rank, 1, bias=False),
        nn.Conv2d(rank, rank, (len(rows), 1), **geometry_along(layer, 0), groups=rank, bias=False, padding_mode=mode),
        nn.Conv2d(
            rank, rank, (1, len(columns)), **geometry_along(layer, 1), groups=rank, bias=False, padding_mode=mode
        ),
        nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None),
    ]
    return chain_of_layers(made, [inputs.T, rows.T, columns.T, outputs], layer.bias)


def geometry_along(layer: nn.Conv2d, axis: int) -> dict[str, Any]:
    """Stride, padding and dilation of `layer` along `axis` (0 vertical, 1 horizontal), neutral along the other."""

    def keep(pair: tuple[int, ...] | str, neutral: int) -> tuple[int, ...] | str:
        return pair if isinstance(pair, str) else tuple(pair[i] if i == axis else neutral for i in (0, 1))

    return {"stride": keep(layer.stride, 1), "padding": keep(layer.padding, 0), "dilation": keep(layer.dilation, 1)}
