"""Which parameters a step of a chain reached: those of layers that it changed in value, shape or class.

A sparsity of 90% of the head alone is no sparsity of the network.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compression.nn import layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from compression.methods.base import Method
    from compression.training.context import RunLogger

LEAST = 0.5  # a step that reaches less of the parameters is warned of
NAMED = 4  # classes of layers in the warning, at most
FAMILIES = ("prune", "quantize", "decompose")  # training reaches everything

Fingerprint = tuple[Any, ...]


@dataclass(frozen=True)
class LayerState:
    """The class, the number of parameters and a fingerprint of a module's own parameters."""

    kind: str
    parameters: int
    fingerprint: Fingerprint
    tied: str = ""  # the layer that shares the weight of this embedding


def layer_states(model: nn.Module) -> dict[str, LayerState]:
    """The state of every module that owns parameters or quantized weights, by name; shared parameters count once."""
    seen: set[int] = set()
    tied = {embedding: name for name, embedding in layers.tied_layers(model).items()}
    states = {}
    for name, module in model.named_modules():
        # A tied weight (of embeddings and head) counts where it is found first.
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) not in seen}
        seen.update(map(id, own.values()))
        if own or isinstance(module, layers.COMPRESSED_LAYERS):
            count = sum(p.numel() for p in own.values())
            fingerprint = (type(module), *((n, *_fingerprint(p)) for n, p in own.items()))
            states[layers.original_name(model, name) if name else name] = LayerState(
                type(module).__name__, count, fingerprint, tied.get(name, "")
            )
    return states


@torch.no_grad()
def _fingerprint(tensor: Tensor) -> Fingerprint:
    # Three numbers instead of a copy of the weights. Only the last one tells weights that changed places; 1009 is
    # prime, so that rows of 256 or 1,024 weights do not have the same places.
    values = tensor.detach().double()
    places = torch.arange(values.numel(), device=values.device, dtype=torch.float64).remainder(1009).view_as(values)
    return tuple(tensor.shape), values.sum().item(), values.abs().sum().item(), (values * places).sum().item()


def rows(before: Mapping[str, LayerState], after: Mapping[str, LayerState]) -> list[dict[str, Any]]:
    """A row for each class of layers: its parameters before the step, and the share of those in changed layers."""
    total: dict[str, int] = defaultdict(int)
    reached: dict[str, int] = defaultdict(int)
    for name, state in before.items():
        total[state.kind] += state.parameters
        if _is_reached(name, state, after):
            reached[state.kind] += state.parameters
    return [{"type": kind, "params": count, "reached": reached[kind] / count} for kind, count in total.items() if count]


def _is_reached(name: str, state: LayerState, after: Mapping[str, LayerState]) -> bool:
    return name not in after or after[name].fingerprint != state.fingerprint


def has_coverage(step: Method) -> bool:
    """Whether it matters what a step left alone: it compresses, and leaves no layer out on purpose."""
    return step.family in FAMILIES and not step.drops_layers


def log_coverage(name: str, before: Mapping[str, LayerState], model: nn.Module, logger: RunLogger) -> None:
    """Log the table `coverage` and its sum as a metric, and warn below LEAST, of the step `name`, which made `model`.

    `before` are the states of the layers that it was given. Output layers that were left alone since an embedding has
    their weight are told in any case.
    """
    after = layer_states(model)
    table = rows(before, after)
    tied = [f"{s.tied} and {n}" for n, s in before.items() if s.tied and not _is_reached(n, s, after)]
    if tied:
        logger.warn(f"{name} left {', '.join(tied)} alone, which share one weight.")
    total = sum(row["params"] for row in table)
    share = sum(row["params"] * row["reached"] for row in table) / total if total else 0.0
    logger.table("coverage", table)
    logger.metrics({"coverage": share})
    if share < LEAST:
        left = {row["type"]: row["params"] * (1 - row["reached"]) / total for row in table}
        largest = sorted((kind for kind in left if left[kind]), key=lambda kind: -left[kind])[:NAMED]
        untouched = ", ".join(f"{kind} ({left[kind]:.0%})" for kind in largest)
        logger.warn(f"{name} reached {share:.1%} of the parameters only; it left alone: {untouched}.")
