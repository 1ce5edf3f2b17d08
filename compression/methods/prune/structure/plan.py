"""The search for a pruning plan: which units to remove, and in which order, until a target is met."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Location = Hashable  # what has channels to remove: a layer's name, or (layer, part) of a transformer
PruningPlan = dict[Location, list[int]]  # location -> the indices of the channels to remove there
Selection = frozenset[int]  # indices of units
Objective = tuple[float, int, float]  # the target's miss beyond TOLERANCE, the disorder, the target's miss

TINY = 1e-30  # below any score, where all are 0
TOLERANCE = 0.02  # a target missed by more than this share gets a warning


@dataclass(frozen=True)
class PruningUnit:
    """Channels that are removed at once, and their rank: the lower, the sooner they are removed."""

    plan: PruningPlan
    rank: float


def split_into_runs(order: Sequence[int], round_to: int) -> Iterable[list[int]]:
    """Split `order`, channels with the least important first, so that each run leaves a multiple of `round_to`.

    The last `round_to` channels stay. If there are fewer to begin with, channels are removed one by one; one stays.
    """
    start, round_to = 0, round_to if len(order) >= round_to else 1
    for end in range(1, len(order)):
        remaining = len(order) - end
        if remaining % round_to == 0:
            yield list(order[start:end])
            start = end


def rank_units(
    scores: Mapping[Location, Tensor], is_global: bool, round_to: int, parallel: Mapping[Location, int] | None = None
) -> list[PruningUnit]:
    """The units of all locations, from importance scores `(channels,)` of each, in the order of removal.

    With `is_global` they are ranked by their mean score, else so that every location loses the share nearest to the
    same one; of equal shares the units that mean least beside the others of their location go first. Where `parallel`
    says n for a location, n channels go at once, as `parallel_channels` lists them.
    """
    units: list[tuple[float, PruningUnit]] = []
    for location, channel_scores in scores.items():
        together, removed = (parallel or {}).get(location, 1), 0
        position_scores = channel_scores.view(together, -1).mean(0)  # (together, positions) -> (positions,)
        order = position_scores.argsort(stable=True).tolist()
        # A position stands for `together` channels: with 2 in each, multiples of 8 channels are those of 4 positions.
        for run in split_into_runs(order, round_to // math.gcd(round_to, together)):
            score = position_scores[run].mean().item()
            # The middle of the shares before and after: 8 of 16 channels go when others have lost a quarter, not half.
            rank = score if is_global else (removed + len(run) / 2) / len(order)
            removed += len(run)
            relative = score / max(position_scores.mean().item(), TINY)
            units.append((relative, PruningUnit({location: parallel_channels(run, len(order), together)}, rank)))
    return [unit for _, unit in sorted(units, key=lambda pair: (pair[1].rank, pair[0]))]


def parallel_channels(chosen: Iterable[int], positions: int, together: int) -> list[int]:
    """The channels at the positions `chosen` in each of `together` equal parts of `positions` channels."""
    return [position + part * positions for part in range(together) for position in chosen]


def merge_plans(units: Iterable[PruningUnit]) -> PruningPlan:
    """The plan that removes all of `units`."""
    merged: PruningPlan = {}
    for location, channels in itertools.chain.from_iterable(unit.plan.items() for unit in units):
        merged.setdefault(location, []).extend(channels)
    return merged


def find_plan(
    units: Sequence[PruningUnit], removed_share: Callable[[PruningPlan], float], target: float
) -> PruningPlan:
    """The plan whose removed share is `target` within TOLERANCE, in the order of `units` as far as that allows.

    `removed_share(plan)` is the share of the cost that a plan removes; it grows with every further unit. All units
    together have to remove the target.
    """
    search = PlanSearch(units, removed_share, target)
    return merge_plans(units[i] for i in sorted(search.best()))


class PlanSearch:
    """Searches the selection of units that minimises `objective`.

    The first units of the order are taken. Where whole units miss the target (the next one would take a head of every
    layer), later units of other locations fill the gap (neurons), or a few units are swapped for others, whichever
    stays nearer to the order. Each selection is costly to evaluate, so the search evaluates few and each one once.
    """

    def __init__(
        self, units: Sequence[PruningUnit], removed_share: Callable[[PruningPlan], float], target: float
    ) -> None:
        self.units, self.target = units, target
        # An evaluation copies the model, cuts it and, for MACs, runs it: seconds matter here, not the search itself.
        self.share = cache(lambda selection: removed_share(merge_plans(units[i] for i in sorted(selection))))

    def objective(self, selection: Selection) -> Objective:
        """What is minimised, the first entry first: how far the target is missed beyond TOLERANCE, disorder, miss."""
        # Within TOLERANCE all are equally good by the first entry, and the order of importance decides.
        miss = abs(self.share(selection) - self.target)
        return max(0.0, miss - TOLERANCE), disorder(selection), miss

    def meets_target(self, selection: Selection) -> bool:
        """Whether the target is met within TOLERANCE."""
        return self.objective(selection)[0] == 0

    def best(self) -> Selection:
        """The best of the selections in order, with filled gaps, and with swaps."""
        candidates = list(self.selections_in_order()) or [Selection()]
        best = min(candidates, key=self.objective)
        # Swaps begin at the two next to the target in plain order, just below it and just above.
        for start in candidates[:2]:
            best = self.swap_units(start, best)
        return best

    def selections_in_order(self) -> Iterable[Selection]:
        """The first units, just below and just above the target; then with what fills the gap from other locations."""
        selected, rest = Selection(), list(range(len(self.units)))
        while rest:
            counts = range(len(rest) + 1)
            # The share grows with every unit, so the place of the target is bisected: some 7 evaluations for 100 units.
            below = bisect_right(counts, self.target, key=lambda count: self.share(selected.union(rest[:count]))) - 1
            nearest = [selected.union(rest[:count]) for count in (below, min(below + 1, len(rest)))]
            yield from nearest
            if below == len(rest) or min(abs(self.share(each) - self.target) for each in nearest) <= TOLERANCE:
                return
            # The unit that would step over the target; what its location loses is settled, and others fill the gap.
            too_large = self.units[rest[below]].plan.keys()
            selected = nearest[0]
            rest = [i for i in rest[below + 1 :] if self.units[i].plan.keys() != too_large]

    def swap_units(self, start: Selection, best: Selection) -> Selection:
        """Go from `start` by single swaps to a selection that meets the target; `best`, if that is not worse.

        Of the neighbours that meet the target, the one with the least disorder is taken. While none does, the search
        goes on from the neighbour with the best objective, and stops where no neighbour is better.
        """
        while not self.meets_target(start):
            # Sorting evaluates nothing, and the first that meets the target ends the search: 3 s, not 11, a ResNet-20.
            neighbours = sorted(self.neighbours(start), key=disorder)
            for selection in neighbours:
                if self.meets_target(best) and disorder(selection) >= disorder(best):
                    return best
                if self.meets_target(selection):
                    return selection
            nearest = min(neighbours, key=self.objective)
            if self.objective(nearest) >= self.objective(start):
                return best
            start = nearest
        return min(start, best, key=self.objective)

    def neighbours(self, selection: Selection) -> Iterable[Selection]:
        """Selections with one location's next unit added, with one's last unit removed, or both in two locations."""
        by_location: dict[frozenset[Location], list[int]] = {}
        for index, unit in enumerate(self.units):
            by_location.setdefault(frozenset(unit.plan), []).append(index)
        # Within a location the order is that of importance: only its next unit can come, only its last one go back.
        added = {key: frozenset([min(out)]) for key, all_ in by_location.items() if (out := {*all_} - selection)}
        removed = {key: frozenset([max(in_)]) for key, all_ in by_location.items() if (in_ := {*all_} & selection)}
        yield from (selection | unit for unit in added.values())
        yield from (selection - unit for unit in removed.values())
        yield from (selection - removed[here] | added[there] for here in removed for there in added if here != there)


def disorder(selection: Selection) -> int:
    """How far the last selected unit lies behind the first one that is not selected, in the order of the units."""
    first_skipped = next(i for i in itertools.count() if i not in selection)
    return max(0, max(selection, default=0) - first_skipped)
