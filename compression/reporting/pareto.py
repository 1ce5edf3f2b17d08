"""Pareto dominance between results with several objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def dominates(one: Sequence[float], other: Sequence[float], maximize: Sequence[bool]) -> bool:
    """Whether `one` is at least as good as `other` in every objective and better in one.

    `maximize` says of each objective whether more is better.
    """
    gains = [(a - b) if up else (b - a) for a, b, up in zip(one, other, maximize, strict=True)]
    return min(gains) >= 0 and max(gains) > 0
