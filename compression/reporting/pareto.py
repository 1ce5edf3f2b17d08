"""What cannot be had better in one figure without giving up another."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(one: Sequence[float], other: Sequence[float], more: Sequence[bool]) -> bool:
    """Whether `one` is nowhere worse and somewhere better; `more` says where more is better."""
    gains = [(a - b) if up else (b - a) for a, b, up in zip(one, other, more, strict=True)]
    return min(gains) >= 0 and max(gains) > 0
