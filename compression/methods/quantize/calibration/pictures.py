"""Histograms of what was quantized, with the range that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from compression.methods.quantize.calibration.activations import observe
from compression.nn.inputs import Inputs
from compression.nn.quantized import Numbers, merge, split
from compression.reporting.figures import AFTER, BEFORE, INK, canvas, styled
from compression.training.context import RunLogger

SHOWN = 4  # histograms in one picture


def spread(names: list[str]) -> list[str]:
    """At most SHOWN of the names, from the first to the last."""
    places = np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)
    return [names[i] for i in places]


def in_steps(weight: Tensor, numbers: Numbers) -> np.ndarray:
    """A weight in steps of its scales, where its codes are whole numbers."""
    groups = split(weight.detach(), numbers.granularity, numbers.group_size)
    steps = groups / numbers.scale.unsqueeze(2) + numbers.zero_point.unsqueeze(2)
    return merge(steps, weight.shape).float().cpu().numpy()


def ends(numbers: Numbers) -> tuple[float, float]:
    """The lowest and the highest value that an activation's codes mean."""
    low, high = ((code - numbers.zero_point) * numbers.scale for code in (numbers.low, numbers.high))
    return float(low), float(high)


def keep_trained(
    record: RunLogger,
    model: nn.Module,
    weights: Mapping[str, tuple[Tensor, Numbers]],
    inputs: Mapping[str, Numbers],
    data: list[Inputs],
) -> None:
    """Pictures of some layers of a model trained for its numbers: weights before they are rounded, and inputs."""
    shown = {name: weights[name] for name in spread(list(weights))}
    steps = {name: in_steps(*held) for name, held in shown.items()}
    codes = {name: (numbers.low, numbers.high) for name, (_, numbers) in shown.items()}
    record.figure("weight-ranges", ranges(steps, codes, "weight in steps"))
    if watched := {name: model.get_submodule(name) for name in spread(list(inputs))}:
        seen = observe(model, watched, data)
        values = {name: held[0].sample.numpy() for name, held in seen.items()}
        record.figure("activation-ranges", ranges(values, {n: ends(inputs[n]) for n in values}, "activation"))


@styled
def ranges(values: dict[str, np.ndarray], chosen: Mapping[str, Sequence[float]], what: str) -> Figure:
    """A histogram for each name, counts on a log scale, with the ends of its chosen range as lines."""
    names = spread(list(values))
    figure, axes = canvas(len(names), width=3.0 * len(names) + 0.5, height=3.0)
    for place, name in zip(axes, names, strict=True):
        low, high = chosen[name]
        held = values[name].ravel()
        inside = (held >= low) & (held <= high)
        edges: Any = np.linspace(min(held.min(), low), max(held.max(), high), 81)
        for part, colour in ((held[inside], AFTER), (held[~inside], BEFORE)):
            place.hist(part, edges, color=colour, histtype="stepfilled")  # a bar each takes seconds to draw
        for end in (low, high):
            place.axvline(end, color=INK, linewidth=1, linestyle="--")
        place.set_yscale("log")
        place.minorticks_off()
        place.set_title(name, fontsize=8)
        place.set_xlabel(f"{what}; {(~inside).mean():.2%} clipped", fontsize=8)
    return figure
