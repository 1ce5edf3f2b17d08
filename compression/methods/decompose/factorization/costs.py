"""What layers cost before and after: parameters, and multiply-accumulates of one example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression.nn.inputs import Inputs, forward

Part = tuple[int, int]  # weights of a layer, and at how many places each is multiplied


@dataclass(frozen=True)
class Cost:
    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.macs - other.macs)


def cost(parts: Iterable[Part]) -> Cost:
    """Of a chain of layers; biases, which stay what they are, left out."""
    return sum((Cost(weights, weights * places) for weights, places in parts), Cost())


@dataclass(frozen=True)
class Places:
    """Pixels or tokens of one example: those that a layer reads, those that it writes.

    `between` are those of a picture whose rows the layer's kernel has gone through, and whose columns not yet.
    """

    read: int = 0
    between: int = 0
    written: int = 0

    def __add__(self, other: Places) -> Places:
        return Places(self.read + other.read, self.between + other.between, self.written + other.written)


def places_of(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Places:
    """Of one call of a convolution, linear layer or embedding on one example."""
    if isinstance(layer, nn.Conv2d):
        (rows, columns), (out_rows, out_columns) = given[0].shape[2:], made.shape[2:]
        return Places(rows * columns, out_rows * columns, out_rows * out_columns)
    tokens = made.numel() // made.shape[-1]
    return Places(tokens, tokens, tokens)


@torch.no_grad()
def footprint(model: nn.Module, layers: Mapping[str, nn.Module], example: Inputs) -> tuple[dict[str, Places], int]:
    """Where each of `layers` works in a forward pass of one example, and the MACs of the whole pass.

    Layers that are never called are missing; one that is called twice has the places of both calls.
    """
    found: dict[str, Places] = {}

    def look(name: str, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        found[name] = found.get(name, Places()) + places_of(layer, given, made)

    handles = [layer.register_forward_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        with FlopCounterMode(display=False) as counter:
            forward(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found, counter.get_total_flops() // 2  # it counts two operations a multiply-accumulate


def nearest(cost_at: Callable[[float], float], wanted: float, rounds: int = 50) -> float:
    """The number in [0, 1] at which the non-decreasing `cost_at` comes nearest to `wanted`."""
    low, high = 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (low, middle) if cost_at(middle) > wanted else (middle, high)
    return min((low, high), key=lambda place: abs(cost_at(place) - wanted))
