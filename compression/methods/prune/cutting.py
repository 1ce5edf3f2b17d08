"""Empty heads and neurons of a transformer, cut out so that the model answers as before and costs less."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from compression import figures, surgery


def cut_empty(model: nn.Module) -> nn.Module:
    """Cut every head and neuron whose weights are zero on either side; the logits stay as they are.

    A head whose values are zero still adds its value bias, a neuron whose inputs are zero the activation of its bias:
    both are the same for every input, and go into the output's bias.
    """
    for index, block in enumerate(surgery.blocks(model)):
        surgery.cut_heads(model, index, fold_heads(block))
        surgery.cut_ffn(model, index, fold_neurons(block, activation(model)))
    return model


@torch.no_grad()
def fold_heads(block: surgery.Block) -> list[int]:
    """Heads that depend on the input; what the others add is moved into the output's bias."""
    by_head = block.value.weight.unflatten(0, (block.heads, block.head_size))
    silent = ~by_head.flatten(1).any(1)
    muted = ~block.output.weight.unflatten(1, (block.heads, block.head_size)).any(2).any(0)
    constant = block.value.bias * silent.repeat_interleave(block.head_size)
    block.output.bias.add_(block.output.weight @ constant)
    return _indices(~silent & ~muted)


@torch.no_grad()
def fold_neurons(block: surgery.Block, activation: nn.Module) -> list[int]:
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


def sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Heads and neurons of each layer."""
    return [(block.heads, block.neurons) for block in surgery.blocks(model)]


def rows(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> list[dict[str, int]]:
    """The table of what each layer kept."""
    return [
        {"layer": i, "heads_before": old[0], "heads": new[0], "neurons_before": old[1], "neurons": new[1]}
        for i, (old, new) in enumerate(zip(before, after, strict=True))
    ]


def picture(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> Figure:
    """Heads and neurons of each layer, before and after."""
    figure, axes = figures.canvas(2, width=9.0, height=3.2)
    for place, title, column in zip(axes, ("Heads by layer", "Neurons by layer"), (0, 1), strict=True):
        places = range(len(before))
        place.bar([p - 0.2 for p in places], [b[column] for b in before], 0.4, color=figures.BEFORE, label="before")
        place.bar([p + 0.2 for p in places], [a[column] for a in after], 0.4, color=figures.AFTER, label="after")
        place.set(title=title, xlabel="layer")
        place.legend()
    return figure
