"""Scales of a linear layer's inputs, folded into the module before it: the model computes what it did.

For a group of layers with inputs X and weights W, X diag(s)^-1 and W diag(s) have the same product (Xiao et al. 2022,
arXiv:2211.10438, eq. 3), and a module before them that X is proportional to takes the diag(s)^-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.nn.quantized import QuantLinear

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from compression.methods.blockwise.walk import Stage

FACTORS = (2.0, 8.0)  # ends of those that try whether scales pass through: none is near 1, which changes nothing
TOLERANCE = 1e-4  # of the largest input: attention in single precision repeats itself to 1e-6


@dataclass(frozen=True)
class Fold:
    """A module that the inputs of a group of layers are proportional to, channel by channel."""

    name: str
    source: nn.Module
    channels: Tensor  # (in_features,): the channel of the source that each input comes from
    offset: float  # of the source's weight, as it is used: norms of Gemma multiply with 1 + weight

    @property
    def width(self) -> int:
        """Number of channels of the source."""
        return int(weight_of(self.source).shape[0])

    def of_inputs(self, values: Tensor, reduce: str) -> Tensor:
        """Reduce (`amax` or `mean`) `values` `(in_features,)` to those of the source's channels, `(width,)`."""
        start = torch.zeros(self.width, dtype=values.dtype, device=values.device)
        return start.scatter_reduce(0, self.channels.to(values.device), values, reduce, include_self=False)

    @torch.no_grad()
    def apply(self, layers: Mapping[str, nn.Linear], scales: Tensor) -> None:
        """Divide the source's outputs by `scales` `(width,)`, and multiply the layers' weights with them; in place."""
        scale_outputs(self.source, 1 / scales, self.offset)
        for layer in layers.values():
            layer.weight.mul_(scales[self.channels].to(layer.weight))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a norm or linear layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def scale_outputs(source: Any, factors: Tensor, offset: float = 0.0) -> None:
    """Multiply each output channel of a norm or linear layer with its factor, `(channels,)`, in place."""
    factors = factors.to(source.weight)
    if isinstance(source, QuantLinear):
        source.scale.mul_(factors.unsqueeze(1))  # one of every row and group: exact, and no code changes
        source.update_weight()
    elif source.weight.ndim == 1:
        source.weight.copy_((source.weight + offset) * factors - offset)
    else:
        source.weight.mul_(factors.unsqueeze(1))
    if getattr(source, "bias", None) is not None:
        source.bias.mul_(factors)


def find_fold(stage: Stage) -> Fold | None:
    """The nearest module before the layers of `stage` that takes scales of theirs; None if there is none.

    The graph says which modules nobody else reads. Whether a scale passes from one to the layers, through products,
    attention or a ReLU, is tried: the inputs of the layers must change by the factors of its channels and no more.
    """
    inputs = stage.layers[stage.group.layers[0]].in_features
    before = stage.probe()
    for name, source in _candidates(stage, inputs):
        width = weight_of(source).shape[0]
        factors = torch.logspace(math.log2(FACTORS[0]), math.log2(FACTORS[1]), width, base=2.0)[_shuffled(width)]
        for offset in (0.0, 1.0) if weight_of(source).ndim == 1 else (0.0,):
            after = _probe_scaled(stage, source, factors, offset)
            channels = scaled_channels(before, after, factors.to(before))
            if channels is not None:
                return Fold(name, source, channels, offset)
    return None


def _candidates(stage: Stage, inputs: int) -> Iterator[tuple[str, nn.Module]]:
    """The norms and linear layers whose channels the inputs could be; grouped queries repeat those of a value."""
    for name, source in stage.sources.items():
        weight = getattr(source, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        is_norm = weight.ndim == 1 and len(weight) == inputs
        # A value may be quantized already when it is its output's turn.
        is_quantized = (
            isinstance(source, QuantLinear) and source.granularity != "tensor" and source.activation == "none"
        )
        if is_norm or ((is_quantized or type(source) is nn.Linear) and inputs % len(weight) == 0):
            yield name, source


def _shuffled(count: int) -> Tensor:
    """So that neighbouring channels do not have neighbouring factors."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _probe_scaled(stage: Stage, source: nn.Module, factors: Tensor, offset: float) -> Tensor:
    """What the layers are given where the outputs of `source` are scaled; the source is left as it was."""
    kept = {name: values.clone() for name, values in source.state_dict().items()}
    scale_outputs(source, factors, offset)
    try:
        return stage.probe()
    finally:
        source.load_state_dict(kept)  # exactly, which dividing again would not


def scaled_channels(before: Tensor, after: Tensor, factors: Tensor) -> Tensor | None:
    """The channel `(features,)` by whose factor each feature of `before` `(rows, features)` became that of `after`.

    None where a feature changed by anything else. A feature that is always zero tells nothing: it is taken for the
    channel of its own number where there are as many, and refused otherwise.
    """
    places = before.abs().argmax(0, keepdim=True)
    largest = before.gather(0, places)
    ratios = (after.gather(0, places) / largest).flatten()
    order = factors.argsort()
    ends = (factors[order][1:] * factors[order][:-1]).sqrt()  # half-way, on the scale of the ratios
    channels = order[torch.bucketize(ratios.nan_to_num(1.0), ends)]
    silent = largest.flatten() == 0
    if silent.any() and len(factors) != len(ratios):
        return None
    channels = torch.where(silent, torch.arange(len(ratios), device=channels.device) % len(factors), channels)
    changed = (after - before * factors[channels]).abs() <= TOLERANCE * largest.abs()
    return channels if changed.all() else None
