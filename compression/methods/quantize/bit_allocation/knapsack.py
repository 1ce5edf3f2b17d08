"""The multiple-choice knapsack: one option for each layer, with the least total cost within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Option:
    """A bit width that a layer could have: the bytes of its weight, and what it costs in quality."""

    bits: int
    size: int
    cost: float


@dataclass(frozen=True)
class _Selection:
    """An option for each of the first layers, as a linked list."""

    size: int
    cost: float
    last: Option | None = None
    previous: _Selection | None = None


def allocate_bits(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """An option for each layer with the least sum of costs whose sizes add up to at most `budget` bytes.

    Solved exactly by dynamic programming: after each layer the Pareto front of the selections so far is kept. Raises
    UserError if not even the smallest options fit.
    """
    smallest = sum(min(o.size for o in layer) for layer in options.values())
    if smallest > budget:
        raise UserError(
            f"budget allows {budget} bytes, but the narrowest widths take {smallest}; raise budget or add narrower "
            "widths."
        )
    front, remaining = [_Selection(0, 0.0)], smallest
    for layer in options.values():
        # What the narrowest widths of the layers to come take: a selection that leaves less room can never be
        # completed.
        remaining -= min(o.size for o in layer)
        # As linked lists selections share their beginnings: one more layer costs an object each, not a copy.
        extended = [_Selection(s.size + o.size, s.cost + o.cost, o, s) for s in front for o in layer]
        front = _pareto_front([s for s in extended if s.size + remaining <= budget])
    best = min(front, key=lambda selection: (selection.cost, selection.size))
    return dict(zip(options, _options(best), strict=True))


def _pareto_front(selections: list[_Selection]) -> list[_Selection]:
    """The selections that cost less than every other one that is no larger."""
    front: list[_Selection] = []
    # In order of size: the last one kept is the cheapest so far, so each is compared once.
    for selection in sorted(selections, key=lambda selection: (selection.size, selection.cost)):
        if not front or selection.cost < front[-1].cost:
            front.append(selection)
    return front


def _options(selection: _Selection | None) -> list[Option]:
    found = []
    while selection is not None and selection.last is not None:
        found.append(selection.last)
        selection = selection.previous
    return found[::-1]
