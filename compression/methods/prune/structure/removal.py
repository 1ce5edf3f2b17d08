"""What goes first, and how much must go: the search that meets a target of channels, parameters or MACs."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression.errors import UserError
from compression.nn import layers
from compression.nn.inputs import Inputs, forward

K = TypeVar("K", bound=Hashable)
Cut = dict[K, list[int]]  # where -> the channels that go there
Taken = frozenset[int]  # which of some blocks
Badness = tuple[float, int, float]  # how far beyond TOLERANCE the target is missed, the disorder, how far in all
TOLERANCE = 0.02  # of what was there: a target missed by more is said loudly


@dataclass(frozen=True)
class Block:
    """Channels that go at once, and their place in the order: the lower, the sooner."""

    cut: Cut
    place: float


def runs(order: Sequence[int], round_to: int) -> Iterable[list[int]]:
    """`order`, a group's channels with the least important first, in runs whose ends leave a multiple of `round_to`.

    The last `round_to` channels stay. A group that has fewer to begin with goes one by one, but for the last.
    """
    start, round_to = 0, round_to if len(order) >= round_to else 1
    for end in range(1, len(order)):
        left = len(order) - end
        if left % round_to == 0:
            yield list(order[start:end])
            start = end


def ordered(scores: dict[K, Tensor], everywhere: bool, round_to: int) -> list[Block]:
    """The runs of all groups, in the order in which they go.

    By their mean score over all groups if `everywhere`; else so that every group loses the same share.
    """
    blocks = []
    for where, found in scores.items():
        gone = 0
        for run in runs(found.argsort(stable=True).tolist(), round_to):
            gone += len(run)
            blocks.append(Block({where: run}, found[run].mean().item() if everywhere else gone / len(found)))
    return sorted(blocks, key=lambda block: block.place)


def merged(blocks: Iterable[Block]) -> Cut:
    """All that goes with `blocks`."""
    total: Cut = {}
    for where, channels in itertools.chain.from_iterable(block.cut.items() for block in blocks):
        total.setdefault(where, []).extend(channels)
    return total


def closest(blocks: Sequence[Block], removed: Callable[[Cut], float], wanted: float, what: str) -> Cut:
    """Those of `blocks` that take away the share `wanted` within TOLERANCE, in their order as far as that allows.

    `removed(cut)` is the share that a cut takes away, larger for every further block. The first blocks go; where that
    misses the target (the next would take a head of every layer), what follows elsewhere (neurons) fills the gap, or
    a few blocks are traded for others, whichever is nearer to the order. UserError if all together are too little.
    """

    @cache
    def share(taken: Taken) -> float:
        return removed(merged(blocks[i] for i in sorted(taken)))

    def badness(taken: Taken) -> Badness:
        error = abs(share(taken) - wanted)
        return max(0.0, error - TOLERANCE), disorder(taken), error

    if (most := share(frozenset(range(len(blocks))))) < wanted:
        raise UserError(
            f"sparsity={wanted:g} of the {what} cannot go: with the least left everywhere, {most:.3f} are gone; "
            "ask for less."
        )
    found = list(fillings(blocks, share, wanted)) or [Taken()]
    best = min(found, key=badness)
    for start in found[:2]:
        best = traded(blocks, start, best, badness)
    return merged(blocks[i] for i in sorted(best))


def disorder(taken: Taken) -> int:
    """How far the last block that is taken lies behind the first that is not, in their order."""
    skipped = next(i for i in itertools.count() if i not in taken)
    return max(0, max(taken, default=0) - skipped)


def fillings(blocks: Sequence[Block], share: Callable[[Taken], float], wanted: float) -> Iterable[Taken]:
    """Selections about the share `wanted`: the first blocks, one more; then with what follows elsewhere in the gap."""
    taken, rest = Taken(), list(range(len(blocks)))
    while rest:
        fitting = bisect_right(range(len(rest) + 1), wanted, key=lambda count: share(taken.union(rest[:count]))) - 1
        near = [taken.union(rest[:count]) for count in (fitting, min(fitting + 1, len(rest)))]
        yield from near
        if fitting == len(rest) or min(abs(share(each) - wanted) for each in near) <= TOLERANCE:
            return
        taken, too_much = near[0], {*blocks[rest[fitting]].cut}
        rest = [i for i in rest[fitting + 1 :] if {*blocks[i].cut} != too_much]


def traded(blocks: Sequence[Block], start: Taken, best: Taken, badness: Callable[[Taken], Badness]) -> Taken:
    """What single trades lead to from `start`, if that is better than `best`; each cut is costly to look at.

    Of those that meet the target the one nearest to the order; as long as there is none, on from what comes nearest.
    """
    while badness(start)[0] > 0:
        near = sorted(trades(blocks, start), key=disorder)
        for taken in near:
            if badness(best)[0] == 0 and disorder(taken) >= disorder(best):
                return best
            if badness(taken)[0] == 0:
                return taken
        nearest = min(near, key=badness)
        if badness(nearest) >= badness(start):
            return best
        start = nearest
    return min(start, best, key=badness)


def trades(blocks: Sequence[Block], taken: Taken) -> Iterable[Taken]:
    """Selections with the next block of a place taken too, the last one given back, or both in two places."""
    places: dict[frozenset[Any], list[int]] = {}
    for index, block in enumerate(blocks):
        places.setdefault(frozenset(block.cut), []).append(index)
    more = {place: frozenset([min(left)]) for place, every in places.items() if (left := {*every} - taken)}
    less = {place: frozenset([max(gone)]) for place, every in places.items() if (gone := {*every} & taken)}
    yield from (taken | one for one in more.values())
    yield from (taken - one for one in less.values())
    yield from (taken - less[here] | more[there] for here in less for there in more if here != there)


def parameters(model: nn.Module, example: Inputs) -> int:
    return layers.count_parameters(model)


@torch.no_grad()
def operations(model: nn.Module, example: Inputs) -> int:
    """Operations of one forward pass, twice the multiply-accumulates."""
    with FlopCounterMode(display=False) as counter:
        forward(model.eval(), example)
    return counter.get_total_flops()


COSTS = {"params": parameters, "macs": operations}
