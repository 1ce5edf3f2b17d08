"""What is said and shown of a decomposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from compression.methods.decompose.factorization.candidate import Candidate, Ranks
from compression.methods.decompose.factorization.costs import Cost
from compression.nn import layers
from compression.reporting import figures
from compression.reporting.figures import AFTER, BEFORE, canvas, styled
from compression.training.context import Context

SHOWN = 4  # layers in the picture of singular values


def doubts(model: nn.Module, found: Sequence[Candidate], chosen: Mapping[str, Ranks], rank: str) -> list[str]:
    """Sentences on what is lost or suspicious, before anything changes."""
    said = []
    noise = [one.name for one in found if rank == "evbmf" and not all(s.above_noise for s in one.spectra)]
    if noise:
        said.append(
            f"EVBMF takes {len(noise)} of {len(found)} layers for noise, {noise[0]} say, and they get the least rank: "
            "choose rank=energy, or train the model longer."
        )
    if lost := [name for name in layers.masked(model) if name in chosen]:
        said.append(f"The zeros of {len(lost)} pruned layers, {lost[0]} say, are gone: their factors are dense.")
    if not chosen:
        said.append(f"No layer gets smaller at the ranks by {rank}: the model is what it was.")
    return said


def costs(when: str, cost: Cost) -> dict[str, int]:
    """The columns of a cost, before or after."""
    return {f"params {when}": cost.params, f"macs {when}": cost.macs}


def whole(row: Mapping[str, Any], before: Cost, after: Cost) -> dict[str, Any]:
    """The last row of the table, in the columns of `row`: the model with all that was not decomposed."""
    return dict.fromkeys(row, "") | {"layer": "whole model"} | costs("before", before) | costs("after", after)


def draw(
    found: Sequence[Candidate], chosen: Mapping[str, Ranks], errors: Mapping[str, float], context: Context
) -> None:
    """The pictures of the layers that were decomposed."""
    replaced = [one for one in found if one.name in chosen]
    if not replaced:
        return
    bars = [{"layer": name, "error": error} for name, error in errors.items()]
    context.record.figure(
        "reconstruction-error", figures.layers(None, bars, "error", "Relative error of the weights by layer")
    )
    most = sorted(replaced, key=lambda one: -one.before.params)[:SHOWN]
    context.record.figure("singular-values", singular_values([one for one in replaced if one in most], chosen))


@styled
def singular_values(shown: Sequence[Candidate], chosen: Mapping[str, Ranks]) -> Figure:
    """For each layer the singular values of its unfoldings, and as dashed lines the ranks that were chosen.

    Of a convolution, the first colour is that of the outputs, the second that of the inputs. A CP decomposition has
    one rank for both.
    """
    figure, axes = canvas(len(shown), width=3.0 * len(shown) + 0.5, height=3.0)
    for place, one in zip(axes, shown, strict=True):
        for spectrum, colour in zip(one.spectra, (AFTER, BEFORE), strict=False):
            place.plot(range(1, len(spectrum.values) + 1), spectrum.values / (spectrum.values[0] or 1), color=colour)
        for rank, colour in zip(chosen[one.name], (AFTER, BEFORE), strict=False):
            place.axvline(rank, color=colour, linewidth=1, linestyle="--")
        place.set_ylim(bottom=0)
        place.set_title(one.name, fontsize=8)
        place.set_xlabel(f"singular value; rank {'x'.join(map(str, chosen[one.name]))}", fontsize=8)
    return figure
