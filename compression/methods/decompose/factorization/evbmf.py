"""EVBMF: estimate the rank of a noisy matrix by empirical variational Bayesian matrix factorization, in closed form.

Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14, in the simpler form of Nakajima, Tomioka, Sugiyama and Babacan 2015, "Condition for perfect
dimensionality recovery by variational Bayesian PCA", JMLR 16. The matrix is modelled as a low-rank one plus Gaussian
noise of unknown variance; both the rank and the variance follow from its singular values alone. The rank is recovered
exactly while it is small against the sides. Notation of the papers: L <= M are the sides, alpha = L / M.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

GRID = 400  # variances tried before the best is refined: the objective has several local minima
SMALLEST = 1e-7  # of the largest singular value: what is smaller is float32 rounding


@dataclass(frozen=True)
class EvbmfResult:
    """The estimated (shrunk) singular values `(rank,)`, and the variance of the noise on each entry."""

    values: np.ndarray
    noise_variance: float

    @property
    def rank(self) -> int:
        """The number of singular values above the noise."""
        return len(self.values)


def evbmf(singular_values: np.ndarray, shape: tuple[int, int]) -> EvbmfResult:
    """Estimate rank and noise of a matrix of `shape` from all its singular values `(min(shape),)`.

    Raises ValueError for another number of values.
    """
    short, long = sorted(shape)
    ordered = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1]
    if len(ordered) != short:
        raise ValueError(f"a {shape[0]}x{shape[1]} matrix has {short} singular values, not {len(ordered)}")
    if not ordered[0]:
        return EvbmfResult(ordered[:0], 0.0)
    squares = np.maximum(ordered, SMALLEST * ordered[0]) ** 2
    variance = noise_variance(squares, short, long)
    kept = squares[squares > variance * long * threshold(short / long)]
    return EvbmfResult(shrink(kept, variance, short, long), variance)


def threshold(alpha: float) -> float:
    """The smallest gamma**2 / (M sigma**2) of a singular value that is kept, x = (1 + t) (1 + alpha / t).

    t is where phi(t) + phi(t / alpha) crosses zero, phi(z) = log(1 + z) / z - 1/2; the paper's t = 2.5129 sqrt(alpha)
    is close to it.
    """
    # phi falls and is zero at 2.5129: for alpha <= 1 both terms are positive at 2.5 alpha, and negative at 2.6.
    t = brentq(lambda t: _phi(t) + _phi(t / alpha), 2.5 * alpha, 2.6)
    return float((1 + t) * (1 + alpha / t))


def _phi(z: float) -> float:
    return float(np.log1p(z) / z - 0.5)


def shrink(squares: np.ndarray, variance: float, short: int, long: int) -> np.ndarray:
    """Estimate the singular values that are kept from their squares gamma**2 `(rank,)`."""
    # gamma / 2 (1 - (L + M) s2 / g2 + sqrt((1 - (L + M) s2 / g2)^2 - 4 L M s2^2 / g2^2)) with s2 = sigma^2, g2 =
    # gamma^2.
    rest = 1 - (short + long) * variance / squares
    root = np.sqrt(np.maximum(rest**2 - 4 * short * long * (variance / squares) ** 2, 0))
    estimates: np.ndarray = np.sqrt(squares) / 2 * (rest + root)
    return estimates


def noise_variance(squares: np.ndarray, short: int, long: int) -> float:
    """Estimate the variance of the noise on each entry from all squared singular values, the largest first."""
    low, high = _bounds(squares, short, long)
    if low >= high:  # all values are the same, or there is only one
        return high

    def objective(variance: float) -> float:
        return free_energy(squares / (long * variance), short / long)

    # In equal ratios: the bounds may lie orders of magnitude apart, where most of the matrix is signal.
    grid = np.geomspace(low, high, GRID)
    best = int(np.argmin([objective(variance) for variance in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    found = minimize_scalar(objective, around, bounds=around, method="bounded", options={"xatol": 1e-9 * around[1]})
    return float(found.x if found.fun < objective(grid[best]) else grid[best])


def free_energy(x: np.ndarray, alpha: float) -> float:
    """The part of the free energy that depends on the variance, of x = gamma**2 / (M sigma**2) `(L,)`."""
    # psi_0(x) = x - log x of all values, and of those that are kept psi_1(x) = log(1 + t) + alpha log(1 + t / alpha) -
    # t, where t is the papers' tau(x), the larger root of t^2 - (x - 1 - alpha) t + alpha = 0.
    excess = x[x > threshold(alpha)] - (1 + alpha)
    t = (excess + np.sqrt(np.maximum(excess**2 - 4 * alpha, 0))) / 2
    return float(np.sum(x - np.log(x)) + np.sum(np.log1p(t) + alpha * np.log1p(t / alpha) - t))


def _bounds(squares: np.ndarray, short: int, long: int) -> tuple[float, float]:
    """Lower and upper bound of the variance: at most L / (1 + alpha) singular values can be above the noise."""
    alpha = short / long
    most = min(int(np.ceil(short / (1 + alpha))) - 1, short - 1)
    # Below, more values than that would be above the threshold; nor is the noise less than the mean of the rest.
    low = max(squares[most] / (long * threshold(alpha)), squares[most:].mean() / long)
    return float(low), float(squares.sum() / (short * long))
