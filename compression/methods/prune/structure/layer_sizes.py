"""The sizes of a transformer's layers, before and after a removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from compression.nn import transformer
from compression.reporting.figures import prune as figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.training.context import RunLogger


class LayerSize(NamedTuple):
    """The numbers of heads, feed-forward neurons and hidden dimensions of a layer."""

    heads: int
    neurons: int
    hidden: int


def layer_sizes(model: nn.Module) -> list[LayerSize]:
    """The present size of each layer."""
    hidden = transformer.hidden_size(model)
    return [LayerSize(block.heads, block.neurons, hidden) for block in transformer.blocks(model)]


def log_layer_sizes(before: Sequence[LayerSize], after: Sequence[LayerSize], record: RunLogger) -> None:
    """Log a table and a figure of the sizes of each layer."""
    record.table("kept", size_table(before, after))
    old, new = ([size._asdict() for size in sizes] for sizes in (before, after))
    record.figure("kept", figures.layer_sizes(old, new))


def size_table(before: Sequence[LayerSize], after: Sequence[LayerSize]) -> list[dict[str, int]]:
    """Rows {layer, heads_before, neurons_before, hidden_before, heads, neurons, hidden}, one a layer."""
    return [
        {"layer": i} | {f"{name}_before": n for name, n in old._asdict().items()} | new._asdict()
        for i, (old, new) in enumerate(zip(before, after, strict=True))
    ]
