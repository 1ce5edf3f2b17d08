"""Warnings, table rows and figures about a decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression.nn import layers
from compression.reporting.figures.decompose import singular_values
from compression.reporting.figures.runs import bars_by_layer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from compression.methods.decompose.factorization.candidate import Candidate, Ranks
    from compression.methods.decompose.factorization.costs import Cost
    from compression.training.context import Context

MOST_SPECTRA = 4  # layers in the figure of singular values, those with the most parameters


def diagnostics(model: nn.Module, candidates: Sequence[Candidate], chosen: Mapping[str, Ranks], rank: str) -> list[str]:
    """Sentences about what a decomposition will lose and what looks wrong; called before the model changes."""
    sentences = []
    noise = [c.name for c in candidates if rank == "evbmf" and not all(s.evbmf_rank for s in c.spectra)]
    if noise:
        sentences.append(
            f"EVBMF finds only noise in {len(noise)} of {len(candidates)} layers (such as {noise[0]}), which get the "
            "least rank: choose rank=energy, or train the model longer."
        )
    if lost := [name for name in layers.masked_layers(model) if name in chosen]:
        sentences.append(f"{len(lost)} pruned layers (such as {lost[0]}) lose their zeros: the factors are dense.")
    if not chosen:
        sentences.append(f"No layer gets smaller at the ranks by {rank}: the model stays as it was.")
    return sentences


def cost_columns(when: str, cost: Cost) -> dict[str, int]:
    """The table's columns of a cost; `when` is before or after."""
    return {f"params {when}": cost.params, f"macs {when}": cost.macs}


def whole_model_row(row: Mapping[str, Any], before: Cost, after: Cost) -> dict[str, Any]:
    """The last row of the table, in the columns of `row`: the whole model, with the layers that stayed."""
    costs = cost_columns("before", before) | cost_columns("after", after)
    return dict.fromkeys(row, "") | {"layer": "whole model"} | costs


def log_figures(
    candidates: Sequence[Candidate], chosen: Mapping[str, Ranks], errors: Mapping[str, float], context: Context
) -> None:
    """Record the relative errors and the largest layers' singular values; nothing where no layer was replaced."""
    replaced = [c for c in candidates if c.name in chosen]
    if not replaced:
        return
    bars = [{"layer": name, "error": error} for name, error in errors.items()]
    context.record.figure(
        "reconstruction-error", bars_by_layer(None, bars, "error", "Relative error of the weights by layer")
    )
    largest = sorted(replaced, key=lambda c: -c.cost.params)[:MOST_SPECTRA]
    spectra = {c.name: [spectrum.values for spectrum in c.spectra] for c in replaced if c in largest}
    context.record.figure("singular-values", singular_values(spectra, chosen))
