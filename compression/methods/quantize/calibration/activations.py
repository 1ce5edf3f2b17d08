"""Statistics of what layers are given, collected over calibration examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, attention_mask, forward

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from compression.training.context import Context

BATCH_SIZE = 32
SAMPLE_SIZE = 2**17  # values kept of each input: 13 of them lie beyond the 99.99th percentile


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of one input of a layer over the calibration batches, in float32; all but `means` on the CPU."""

    minima: Tensor  # (batches,), the smallest value of each batch, in all calls of the layer
    maxima: Tensor  # (batches,), the largest
    sample: Tensor  # (values,), picked at random
    means: Tensor  # (channels,), or (features,) where the input is not (batch, channels, height, width)


@dataclass
class _Collector:
    minima: dict[int, Tensor] = field(default_factory=dict)  # by batch: of all calls of a module in it
    maxima: dict[int, Tensor] = field(default_factory=dict)
    sample: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, values: Tensor, count: int, batch: int) -> None:
        """Add a call in the batch of this number, with `count` of its values as a sample."""
        values = values.detach()
        flat = values.flatten()
        # The same positions in every tensor of this shape, so that layers that share a tensor get the same range.
        positions = torch.randint(len(flat), (count,), generator=torch.Generator().manual_seed(batch))
        self.minima[batch] = torch.minimum(flat.amin(), self.minima.get(batch, flat.amin()))
        self.maxima[batch] = torch.maximum(flat.amax(), self.maxima.get(batch, flat.amax()))
        self.sample.append(flat[positions.to(flat.device)])
        channel_dimension = 1 if values.ndim == 4 else -1
        by_channel = values.movedim(channel_dimension, 0).flatten(1)  # (channels, everything else)
        self.sums.append(by_channel.sum(1))
        self.counts.append(by_channel.shape[1])  # the last batch may be smaller

    def statistics(self) -> ActivationStatistics:
        minima, maxima = (torch.stack([*ends.values()]).float().cpu() for ends in (self.minima, self.maxima))
        means = torch.stack(self.sums).sum(0) / sum(self.counts)
        return ActivationStatistics(minima, maxima, torch.cat(self.sample).float().cpu(), means)


def calibration_batches(context: Context, samples: int, size: int = BATCH_SIZE) -> list[Inputs]:
    """Prepared batches of `samples` training examples (all, if there are fewer), chosen by the run's seed."""
    train = context.task.train
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[:samples]
    return [inputs for inputs, _ in train.select(chosen).to(context.device).batches(size)]


@torch.no_grad()
def observe_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Inputs]
) -> dict[str, list[ActivationStatistics]]:
    """Run `model` in eval mode on `batches` and collect statistics of each positional input of `modules`, by name.

    Padding is left out of inputs `(batch, length, …)`. Modules that are never called are missing from the result. The
    model is left in eval mode.
    """
    model.eval()
    if not modules:
        return {}
    collectors: dict[str, list[_Collector]] = {}
    values_per_batch, batch_index = -(-SAMPLE_SIZE // len(batches)), 0
    mask: Tensor | None = None

    def collect(call: Call) -> None:
        of_module = collectors.setdefault(call.name, [_Collector() for _ in call.inputs])
        for collector, given in zip(of_module, call.inputs, strict=True):
            values = given
            if mask is not None and values.ndim > 2 and values.shape[:2] == mask.shape:
                values = values[mask.to(values.device)]
            collector.add(values, values_per_batch, batch_index)

    with on_forward(modules, collect, before=True):
        for batch_index, inputs in enumerate(batches):  # noqa: B007 - `collect` reads it
            mask = attention_mask(inputs)
            forward(model, inputs)
    return {name: [collector.statistics() for collector in of_module] for name, of_module in collectors.items()}
