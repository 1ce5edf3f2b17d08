"""Cross-layer equalization.  Nagel et al. 2019, arXiv:1906.04721, section 4.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from compression.nn.graph import Graph, Node, record_graph

if TYPE_CHECKING:
    from compression.nn.inputs import Inputs

# f(s x) = s f(x) for s > 0 in every channel, so a channel's scale can move across.
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout)
# Poolings of images stay within a channel; those of rows would mix features.
HOMOGENEOUS_ON_IMAGES = (*HOMOGENEOUS, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d)
HOMOGENEOUS_FUNCTIONS = (F.relu, torch.relu, torch.Tensor.relu, torch.Tensor.relu_)
ROUNDS = 20  # over all pairs; it converges in a handful


def equalize(model: nn.Module, example: Inputs) -> list[tuple[str, str]]:
    """Equalize the ranges of the channels between neighbouring layers, in place; the pairs of their names.

    Nagel et al. 2019, eq. 11. Fold batch norms first; `example` is a prepared batch.
    """
    pairs = _pairs(record_graph(model, example))
    for _ in range(ROUNDS):
        for first, second in pairs:
            equalize_pair(model.get_submodule(first), model.get_submodule(second))  # type: ignore[arg-type]
    return pairs


def _pairs(graph: Graph) -> list[tuple[str, str]]:
    """Pairs of layers with nothing between them but homogeneous functions."""
    pairs = []
    for node in graph.nodes:
        second = node.target
        # Along dim 1 the weight of a grouped convolution has inputs / groups entries, each for an input of every group.
        if type(second) is nn.Linear or (type(second) is nn.Conv2d and second.groups == 1):
            first = _weighted_source(graph, node)
            # Behind a flattened image a linear layer has many inputs for one channel.
            if first and type(first.target) is type(second) and graph.only_call(node.name):
                pairs.append((first.name, node.name))
    return pairs


def _weighted_source(graph: Graph, node: Node) -> Node | None:
    """The layer, called once, whose output reaches `node` through homogeneous functions and goes nowhere else."""
    between = HOMOGENEOUS_ON_IMAGES if type(node.target) is nn.Conv2d else HOMOGENEOUS
    source = graph.source(node)
    while source and (type(source.target) in between or source.target in HOMOGENEOUS_FUNCTIONS):
        source = graph.source(source)
    return source if source and graph.only_call(source.name) else None


@torch.no_grad()
def equalize_pair(first: nn.Linear | nn.Conv2d, second: nn.Linear | nn.Conv2d) -> None:
    """Scale output channels of `first` by 1/s and input channels of `second` by s, s = sqrt(r1 r2) / r2, in place.

    r1 and r2 are the largest magnitudes of a channel's weights in either layer; a channel that is zero in one stays.
    """
    outgoing = first.weight.flatten(1).abs().amax(1)
    incoming = second.weight.transpose(0, 1).flatten(1).abs().amax(1)
    alive = (outgoing > 0) & (incoming > 0)
    # Both ranges become sqrt(r1 r2): eq. 11.
    scale = torch.where(alive, (outgoing * incoming).sqrt() / incoming.clamp_min(1e-30), 1.0)
    first.weight.div_(scale.view(-1, *[1] * (first.weight.ndim - 1)))
    second.weight.mul_(scale.view(-1, *[1] * (second.weight.ndim - 2)))  # along the inputs
    if first.bias is not None:
        first.bias.div_(scale)
