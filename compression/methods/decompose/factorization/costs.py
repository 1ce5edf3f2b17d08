"""Parameters and multiply-accumulates (MACs) of layers and of their factors, and a search for a wanted cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, forward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class FactorSize(NamedTuple):
    """Size of one layer of a factorization: its weights, and the positions at which each is multiplied."""

    weights: int
    positions: int


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs of one example."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.macs - other.macs)


def total_cost(factors: Iterable[FactorSize]) -> Cost:
    """Cost of a chain of layers, without biases: a decomposition leaves these as they are."""
    return sum((Cost(weights, weights * positions) for weights, positions in factors), Cost())


@dataclass(frozen=True)
class FeatureMapSizes:
    """Positions (pixels, or tokens) of one example in the input and in the output of a layer.

    `between` counts those of the map between a vertical and a horizontal convolution: output rows x input columns.
    """

    input: int = 0
    between: int = 0
    output: int = 0

    def __add__(self, other: FeatureMapSizes) -> FeatureMapSizes:
        return FeatureMapSizes(self.input + other.input, self.between + other.between, self.output + other.output)


def feature_map_sizes(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> FeatureMapSizes:
    """Sizes in one call of a convolution `(1, channels, height, width)`, or of a linear layer or embedding."""
    if isinstance(layer, nn.Conv2d):
        (rows, columns), (out_rows, out_columns) = inputs[0].shape[2:], output.shape[2:]
        return FeatureMapSizes(rows * columns, out_rows * columns, out_rows * out_columns)
    # Of the output, whose last dimension is features for both; an embedding's input has none.
    tokens = output.numel() // output.shape[-1]
    return FeatureMapSizes(tokens, tokens, tokens)


@torch.no_grad()
def profile_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Inputs
) -> tuple[dict[str, FeatureMapSizes], int]:
    """Feature-map sizes of each of `layers` in a forward pass of one example, and the MACs of the whole pass.

    Layers that are never called are missing; the sizes of several calls of a layer are added up.
    """
    sizes: dict[str, FeatureMapSizes] = {}

    def add_call(call: Call) -> None:
        earlier = sizes.get(call.name, FeatureMapSizes())
        sizes[call.name] = earlier + feature_map_sizes(call.module, call.inputs, call.output)

    with on_forward(layers, add_call), FlopCounterMode(display=False) as counter:
        forward(model, example)
    return sizes, counter.get_total_flops() // 2  # it counts a multiply-accumulate as two operations


def bisect_share(cost_at: Callable[[float], float], wanted: float, rounds: int = 50) -> float:
    """The share in [0, 1] at which the non-decreasing `cost_at` comes nearest to `wanted`."""
    low, high = 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (low, middle) if cost_at(middle) > wanted else (middle, high)
    # Ranks are whole: `cost_at` has steps, and low and high end on the two sides of one.
    return min((low, high), key=lambda share: abs(cost_at(share) - wanted))
