"""Choosing one option for each layer: the least cost within a budget, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compression.errors import UserError


@dataclass(frozen=True)
class Option:
    """A width that a layer could have: the bytes it takes and what it costs in quality."""

    bits: int
    size: int
    cost: float


@dataclass(frozen=True)
class _Way:
    """The options of the layers so far."""

    size: int
    cost: float
    last: Option | None = None
    before: _Way | None = None


def assign(options: Mapping[str, list[Option]], budget: int) -> dict[str, Option]:
    """An option for each layer with the least sum of costs whose sizes add up to at most `budget` bytes.

    The multiple-choice knapsack, solved exactly by dynamic programming: after each layer all ways are kept that no
    other beats in both size and cost. UserError where not even the smallest options fit.
    """
    least = sum(min(o.size for o in layer) for layer in options.values())
    if least > budget:
        raise UserError(
            f"budget allows {budget} bytes, but the narrowest widths take {least}; raise budget or add narrower widths."
        )
    ways = [_Way(0, 0.0)]
    rest = least
    for layer in options.values():
        rest -= min(o.size for o in layer)
        made = [_Way(way.size + o.size, way.cost + o.cost, o, way) for way in ways for o in layer]
        ways = undominated([way for way in made if way.size + rest <= budget])
    return dict(zip(options, _choices(min(ways, key=lambda way: (way.cost, way.size))), strict=True))


def undominated(ways: list[_Way]) -> list[_Way]:
    """The ways that are cheaper than all that are no larger."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda way: (way.size, way.cost)):
        if not kept or way.cost < kept[-1].cost:
            kept.append(way)
    return kept


def _choices(way: _Way | None) -> list[Option]:
    found = []
    while way is not None and way.last is not None:
        found.append(way.last)
        way = way.before
    return found[::-1]
