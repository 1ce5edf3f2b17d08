"""Cross-layer equalization.  Nagel et al. 2019, arXiv:1906.04721, section 4.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.methods.quantize.graph.tracing import module_calls, sole_producer

if TYPE_CHECKING:
    from torch import fx

# f(s x) = s f(x) for s > 0 in every channel, so a channel's scale can move across.
HOMOGENEOUS = (nn.ReLU, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ROUNDS = 20  # over all pairs; it converges in a handful


def equalize(model: nn.Module) -> list[tuple[str, str]]:
    """Equalize the ranges of the channels between neighbouring layers, in place; the pairs of their names.

    Nagel et al. 2019, eq. 11. Fold batch norms first. Raises UserError where torch.fx cannot follow the model.
    """
    pairs = _pairs(model)
    for _ in range(ROUNDS):
        for first, second in pairs:
            equalize_pair(model.get_submodule(first), model.get_submodule(second))  # type: ignore[arg-type]
    return pairs


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of layers with nothing between them but homogeneous functions."""
    pairs = []
    for node, second in module_calls(model):
        if isinstance(second, nn.Linear) or (isinstance(second, nn.Conv2d) and second.groups == 1):
            producer = _weighted_producer(node, model)
            if producer and type(producer[1]) is type(second):
                pairs.append((str(producer[0].target), str(node.target)))
    return pairs


def _weighted_producer(node: fx.Node, model: nn.Module) -> tuple[fx.Node, nn.Module] | None:
    """The layer whose output reaches `node` through homogeneous functions alone."""
    while producer := sole_producer(node, model, HOMOGENEOUS):
        node = producer[0]
    return sole_producer(node, model, (nn.Linear, nn.Conv2d))


@torch.no_grad()
def equalize_pair(first: nn.Linear | nn.Conv2d, second: nn.Linear | nn.Conv2d) -> None:
    """Scale output channels of `first` by 1/s and input channels of `second` by s, s = sqrt(r1 r2) / r2, in place.

    r1 and r2 are the largest magnitudes of a channel's weights in either layer; a channel that is zero in one stays.
    """
    outgoing = first.weight.flatten(1).abs().amax(1)
    incoming = second.weight.transpose(0, 1).flatten(1).abs().amax(1)
    alive = (outgoing > 0) & (incoming > 0)
    scale = torch.where(alive, (outgoing * incoming).sqrt() / incoming.clamp_min(1e-30), 1.0)
    first.weight.div_(scale.view(-1, *[1] * (first.weight.ndim - 1)))
    second.weight.mul_(scale.view(-1, *[1] * (second.weight.ndim - 2)))  # along the inputs
    if first.bias is not None:
        first.bias.div_(scale)
