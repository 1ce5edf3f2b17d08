"""What goes first, and how much must go: the search that meets a target of channels, parameters or MACs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression import layers
from compression.errors import UserError
from compression.tasks.task import Inputs, forward

K = TypeVar("K", bound=Hashable)
Cut = dict[K, list[int]]  # where -> the channels that go there
CLOSE = 0.005  # of what was there: no nearer is looked for


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
    for where, channels in chain.from_iterable(block.cut.items() for block in blocks):
        total.setdefault(where, []).extend(channels)
    return total


def closest(blocks: Sequence[Block], removed: Callable[[Cut], float], wanted: float, what: str) -> Cut:
    """The first of `blocks` that take away the share `wanted`, or as near to it as they come.

    `removed(cut)` is the share that a cut takes away, larger for every further block. Where the next block would take
    far too much (a head of every layer), what follows it elsewhere (neurons) fills the gap. UserError if all blocks
    together are too little.
    """
    if (most := removed(merged(blocks))) < wanted:
        raise UserError(
            f"sparsity={wanted:g} of the {what} cannot go: with the least left everywhere, {most:.3f} are gone; "
            "ask for less."
        )
    taken: list[Block] = []
    found: list[tuple[float, Cut]] = [(wanted, {})]  # how far off, and the cut
    while blocks and min(error for error, _ in found) > CLOSE:
        share = partial(share_of, removed, taken, blocks)
        fitting = bisect_right(range(len(blocks) + 1), wanted, key=share) - 1
        near = (fitting, min(fitting + 1, len(blocks)))
        found += [(abs(share(count) - wanted), merged([*taken, *blocks[:count]])) for count in near]
        taken = [*taken, *blocks[:fitting]]
        too_much = blocks[fitting : fitting + 1]
        blocks = [b for b in blocks[fitting + 1 :] if b.cut.keys() != too_much[0].cut.keys()]
    return min(found, key=lambda pair: pair[0])[1]


def share_of(removed: Callable[[Cut], float], taken: Sequence[Block], blocks: Sequence[Block], count: int) -> float:
    """What goes with `taken` and the first `count` of `blocks`."""
    return removed(merged([*taken, *blocks[:count]]))


def parameters(model: nn.Module, example: Inputs) -> int:
    return layers.count_parameters(model)


@torch.no_grad()
def operations(model: nn.Module, example: Inputs) -> int:
    """Operations of one forward pass, twice the multiply-accumulates."""
    with FlopCounterMode(display=False) as counter:
        forward(model.eval(), example)
    return counter.get_total_flops()


COSTS = {"params": parameters, "macs": operations}
