"""How much of each layer is to go, and the table of how much did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from compression.errors import UserError
from compression.methods.prune.masks import scores
from compression.training.context import RunLogger

TOLERANCE = 0.02  # a sparsity further off is told


def resolve(given: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """The shares of those of the layers `names` that `given` names, themselves or a part of the model they stand in.

    The longest name wins: `stages:0.5/stages.0:0.2`. UserError for a name that no layer has.
    """
    names = list(names)
    found = {name: [g for g in given if name == g or name.startswith(f"{g}.")] for name in names}
    for missing in given.keys() - {g for fitting in found.values() for g in fitting}:
        raise UserError(
            f"layers names {missing!r}, which is no prunable layer of the model; it has {', '.join(names)}."
        )
    return {name: given[max(fitting, key=len)] for name, fitting in found.items() if fitting}


def sparsity(model: nn.Module) -> dict[str, float]:
    """The share of zeros in the weights of each prunable layer."""
    return {name: float((w == 0).float().mean()) for name, w in scores.weights(model).items()}


def total(shares: Mapping[str, float], model: nn.Module) -> float:
    """The share over the layers in `shares` together."""
    sizes = {name: w.numel() for name, w in scores.weights(model).items() if name in shares}
    return sum(shares[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))


def report(before: Mapping[str, float], model: nn.Module, wanted: float, record: RunLogger) -> None:
    """Leave the table; say so where more than `wanted` was pruned already."""
    record.table("sparsity", rows(before, model))
    if (already := total(before, model)) > wanted + TOLERANCE:
        record.warn(f"{already:.0%} of the weights were pruned before, more than the {wanted:.0%} asked for.")


def prune(model: nn.Module, found: scores.Scores, wanted: float, record: RunLogger) -> nn.Module:
    """Mask the weights with the least scores in place, over all layers, and report."""
    before = sparsity(model)
    scores.prune(model, found, wanted)
    report(before, model, wanted, record)
    return model


def rows(before: Mapping[str, float], model: nn.Module) -> list[dict[str, Any]]:
    """The table: weights and sparsity of each layer before and after, then of all of them."""
    after, sizes = sparsity(model), {name: w.numel() for name, w in scores.weights(model).items()}
    table = [(name, size, before[name], after[name]) for name, size in sizes.items()]
    table.append(("total", sum(sizes.values()), total(before, model), total(after, model)))
    return [dict(zip(("layer", "weights", "before", "after"), row, strict=True)) for row in table]
