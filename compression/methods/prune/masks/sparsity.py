"""Sparsities of layers: the targets that options set, what was achieved, and the table of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression.methods.prune.masks.scores import Scores, mask_smallest, prunable_weights
from compression.nn.selection import resolve_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from compression.training.context import RunLogger

TOLERANCE = 0.02  # a target missed by more than this share of the weights gets a warning


def layer_targets(targets: Mapping[str, float], layers: Iterable[str]) -> dict[str, float]:
    """The sparsities of those of `layers` that `targets` names, by a layer's name or that of a part of the model.

    The longest name wins: of `stages:0.5/stages.0:0.2`, stages.0.conv gets 0.2. Raises UserError for a name that no
    layer has.
    """
    selecting = resolve_names(targets, layers, "layers", "prunable layer")
    return {layer: targets[name] for layer, name in selecting.items()}


def layer_sparsities(model: nn.Module) -> dict[str, float]:
    """The share of zeros in the weights of each prunable layer."""
    return {name: float((w == 0).float().mean()) for name, w in prunable_weights(model).items()}


def mean_sparsity(sparsities: Mapping[str, float], model: nn.Module) -> float:
    """The sparsity of the layers in `sparsities` together: their mean, weighted by the layers' sizes."""
    sizes = {name: w.numel() for name, w in prunable_weights(model).items() if name in sparsities}
    return sum(sparsities[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))


def log_sparsities(before: Mapping[str, float], model: nn.Module, target: float, record: RunLogger) -> None:
    """Log the table of sparsities; warn where more than `target` was pruned before this step."""
    record.table("sparsity", sparsity_table(before, model))
    if (already := mean_sparsity(before, model)) > target + TOLERANCE:
        record.warn(f"{already:.0%} of the weights were pruned before, more than the {target:.0%} asked for.")


def prune_by_scores(model: nn.Module, scores: Scores, target: float, record: RunLogger) -> nn.Module:
    """Mask the weights with the smallest scores in place, to the sparsity `target` over all layers, and log it."""
    before = layer_sparsities(model)
    mask_smallest(model, scores, target)
    log_sparsities(before, model, target, record)
    return model


def sparsity_table(before: Mapping[str, float], model: nn.Module) -> list[dict[str, Any]]:
    """Rows {layer, weights, before, after}, one a layer and a last one for all of them."""
    after, sizes = layer_sparsities(model), {name: w.numel() for name, w in prunable_weights(model).items()}
    rows = [(name, size, before[name], after[name]) for name, size in sizes.items()]
    rows.append(("total", sum(sizes.values()), mean_sparsity(before, model), mean_sparsity(after, model)))
    return [dict(zip(("layer", "weights", "before", "after"), row, strict=True)) for row in rows]
