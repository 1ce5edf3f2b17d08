"""Thinner and wider copies of an architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def scale_channels(channels: Sequence[int], width: float) -> list[int]:
    """Return each number of channels times `width`, rounded, at least 1."""
    return [max(1, round(c * width)) for c in channels]
