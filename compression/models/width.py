"""Thinner and wider copies of an architecture."""

from collections.abc import Sequence


def scaled(channels: Sequence[int], width: float) -> list[int]:
    """Each number of channels times `width`, at least one."""
    return [max(1, round(c * width)) for c in channels]
