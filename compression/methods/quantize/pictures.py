"""Histograms of what was quantized, with the range that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from compression.figures import AFTER, BEFORE, INK, canvas, styled

SHOWN = 4  # histograms in one picture


def spread(names: list[str]) -> list[str]:
    """At most SHOWN of the names, from the first to the last."""
    places = np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)
    return [names[i] for i in places]


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
