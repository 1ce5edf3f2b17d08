"""How many singular values of a matrix stand out of noise: analytic empirical variational Bayes factorisation.

Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14, in the simpler form of Nakajima, Tomioka, Sugiyama and Babacan 2015, "Condition for perfect
dimensionality recovery by variational Bayesian PCA", JMLR 16. The matrix is taken for a low-rank one plus Gaussian
noise of unknown variance; both the rank and the variance follow from its singular values alone. The rank is found
exactly while it is a small part of the sides. Notation of the papers: L <= M are the sides, alpha = L / M.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

GRID = 400  # variances tried before the best is refined: the objective has several minima
SMALLEST = 1e-7  # of the largest singular value: below it a float32 weight holds rounding alone


@dataclass(frozen=True)
class Factorisation:
    """The estimated singular values `(rank,)`, shrunk as Bayes does, and the variance of the noise on each entry."""

    values: np.ndarray
    noise_variance: float

    @property
    def rank(self) -> int:
        return len(self.values)


def evbmf(singular_values: np.ndarray, shape: tuple[int, int]) -> Factorisation:
    """Rank and noise of a matrix of `shape` from all its singular values `(min(shape),)`."""
    short, long = sorted(shape)
    ordered = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1]
    if len(ordered) != short:
        raise ValueError(f"a {shape[0]}x{shape[1]} matrix has {short} singular values, not {len(ordered)}")
    if not ordered[0]:
        return Factorisation(ordered[:0], 0.0)
    squares = np.maximum(ordered, SMALLEST * ordered[0]) ** 2
    variance = noise_variance(squares, short, long)
    kept = squares[squares > variance * long * threshold(short / long)]
    return Factorisation(shrunk(kept, variance, short, long), variance)


def threshold(alpha: float) -> float:
    """The least gamma**2 / (M sigma**2) of a singular value that is kept, x = (1 + t) (1 + alpha / t).

    t is where phi(t) + phi(t / alpha) crosses zero, phi(z) = log(1 + z) / z - 1/2; the paper's t = 2.5129 sqrt(alpha)
    is close to it.
    """
    t = brentq(lambda t: _phi(t) + _phi(t / alpha), 2.5 * alpha, 2.6)
    return (1 + t) * (1 + alpha / t)


def _phi(z: float) -> float:
    return np.log1p(z) / z - 0.5


def shrunk(squares: np.ndarray, variance: float, short: int, long: int) -> np.ndarray:
    """The estimates of kept singular values, given as their squares gamma**2."""
    rest = 1 - (short + long) * variance / squares
    return (
        np.sqrt(squares) / 2 * (rest + np.sqrt(np.maximum(rest**2 - 4 * short * long * (variance / squares) ** 2, 0)))
    )


def noise_variance(squares: np.ndarray, short: int, long: int) -> float:
    """The variance of the noise on each entry, from the squared singular values."""
    low, high = _bounds(squares, short, long)
    if low >= high:  # all values are the same, or there is but one
        return high

    def objective(variance: float) -> float:
        return free_energy(squares / (long * variance), short / long)

    tried = np.geomspace(low, high, GRID)
    best = int(np.argmin([objective(variance) for variance in tried]))
    around = tried[max(best - 1, 0)], tried[min(best + 1, GRID - 1)]
    found = minimize_scalar(objective, around, bounds=around, method="bounded", options={"xatol": 1e-9 * around[1]})
    return float(found.x if found.fun < objective(tried[best]) else tried[best])


def free_energy(x: np.ndarray, alpha: float) -> float:
    """What the variance minimises, the free energy's part that depends on it, of x = gamma**2 / (M sigma**2)."""
    excess = x[x > threshold(alpha)] - (1 + alpha)
    t = (excess + np.sqrt(np.maximum(excess**2 - 4 * alpha, 0))) / 2
    return float(np.sum(x - np.log(x)) + np.sum(np.log1p(t) + alpha * np.log1p(t / alpha) - t))


def _bounds(squares: np.ndarray, short: int, long: int) -> tuple[float, float]:
    """Between which the variance lies. No more than L / (1 + alpha) values can stand out."""
    alpha = short / long
    most = min(int(np.ceil(short / (1 + alpha))) - 1, short - 1)
    low = max(squares[most] / (long * threshold(alpha)), squares[most:].mean() / long)
    return float(low), float(squares.sum() / (short * long))
