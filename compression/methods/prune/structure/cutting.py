"""Empty heads and neurons of a transformer, cut out so that the model answers as before and costs less."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compression.nn import transformer
from compression.reporting.figures.prune import layer_sizes
from compression.training.context import RunLogger


def cut_empty(model: nn.Module) -> nn.Module:
    """Cut every head and neuron whose weights are zero on either side; the logits stay as they are.

    A head whose values are zero still adds its value bias, a neuron whose inputs are zero the activation of its bias:
    both are the same for every input, and go into the output's bias.
    """
    for index, block in enumerate(transformer.blocks(model)):
        transformer.cut_heads(model, index, fold_heads(block))
        transformer.cut_ffn(model, index, fold_neurons(block, activation(model)))
    return model


@torch.no_grad()
def fold_heads(block: transformer.Block) -> list[int]:
    """Heads that depend on the input; what the others add is moved into the output's bias."""
    by_head = block.value.weight.unflatten(0, (block.heads, block.head_size))
    silent = ~by_head.flatten(1).any(1)
    muted = ~block.output.weight.unflatten(1, (block.heads, block.head_size)).any(2).any(0)
    constant = block.value.bias * silent.repeat_interleave(block.head_size)
    block.output.bias.add_(block.output.weight @ constant)
    return _indices(~silent & ~muted)


@torch.no_grad()
def fold_neurons(block: transformer.Block, activation: nn.Module) -> list[int]:
    """Neurons that depend on the input; what the others add is moved into the output's bias."""
    silent, muted = ~block.up.weight.any(1), ~block.down.weight.any(0)
    block.down.bias.add_(block.down.weight @ (activation(block.up.bias) * silent))
    return _indices(~silent & ~muted)


def _indices(chosen: Tensor) -> list[int]:
    return chosen.nonzero().flatten().tolist()


def activation(model: Any) -> nn.Module:
    """The function between the two linear layers of the model's feed-forward parts."""
    from transformers.activations import ACT2FN

    return ACT2FN[getattr(model.config, "hidden_act", None) or model.config.activation]


class Sizes(NamedTuple):
    """What a layer has."""

    heads: int
    neurons: int
    hidden: int


def sizes(model: nn.Module) -> list[Sizes]:
    hidden = transformer.hidden_size(model)
    return [Sizes(block.heads, block.neurons, hidden) for block in transformer.blocks(model)]


def show(before: list[Sizes], model: nn.Module, record: RunLogger) -> None:
    """Leave a table and a picture of what each layer kept."""
    after = sizes(model)
    record.table("kept", rows(before, after))
    record.figure("kept", layer_sizes([size._asdict() for size in before], [size._asdict() for size in after]))


def rows(before: list[Sizes], after: list[Sizes]) -> list[dict[str, int]]:
    return [
        {"layer": i} | {f"{name}_before": n for name, n in old._asdict().items()} | new._asdict()
        for i, (old, new) in enumerate(zip(before, after, strict=True))
    ]
