"""The singular values of a layer's weight, and the ranks that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from compression.methods.decompose.factorization.evbmf import evbmf

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """All singular values `(min(shape),)` of a matrix of `shape`, the largest first."""

    values: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> Spectrum:
        """Compute the singular values of a matrix `(rows, columns)`, in double precision."""
        rows, columns = matrix.shape
        wide = matrix.detach().double() if rows <= columns else matrix.detach().double().T
        # Through the small square matrix: a convolution's unfolding is some ten times as long as it is high. Rounding
        # makes eigenvalues of 0 slightly negative.
        squares = torch.linalg.eigvalsh(wide @ wide.T).clamp_min(0)
        return cls(squares.sqrt().flip(0).cpu().numpy(), (rows, columns))

    @cached_property
    def cumulative_energy(self) -> np.ndarray:
        """The share of the squared norm in the first 1, 2, … singular values."""
        total = np.cumsum(self.values**2)
        return total / total[-1] if total[-1] else np.ones_like(total)

    def rank_for_energy(self, share: float) -> int:
        """The least rank, at least 1, whose singular values have `share` of the energy."""
        return min(int(np.searchsorted(self.cumulative_energy, share)) + 1, len(self.values))

    @cached_property
    def evbmf_rank(self) -> int:
        """The rank by EVBMF; 0 for nothing but noise, which a single row or column cannot show."""
        return 1 if len(self.values) == 1 else evbmf(self.values, self.shape).rank


def round_rank(rank: int, full: int, multiple: int) -> int:
    """Round `rank` up to a multiple, within 1 to `full`; not rounded where `full` is less than the multiple."""
    return min(full, max(1, math.ceil(rank / multiple) * multiple if full >= multiple else rank))
