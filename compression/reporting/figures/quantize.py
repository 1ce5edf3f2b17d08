"""The figures of quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compression.reporting.figures.style import AFTER, BEFORE, INK, SHADES, canvas, name_ticks, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 80  # of a histogram


@styled
def histograms(values: Mapping[str, np.ndarray], ranges: Mapping[str, tuple[float, float]], quantity: str) -> Figure:
    """A histogram of the values of each layer, counts on a log scale, with the range that quantization keeps.

    Values outside the (low, high) of `ranges` are clipped, and pale. `quantity` says what the values are.
    """
    figure, panels = canvas(len(values), width=3.0 * len(values) + 0.5, height=3.0)
    for axes, (name, found) in zip(panels, values.items(), strict=True):
        clipped = _draw_histogram(axes, found.ravel(), *ranges[name])
        axes.set_title(name, fontsize=8)
        axes.set_xlabel(f"{quantity}; {clipped:.2%} clipped", fontsize=8)
    return figure


def _draw_histogram(axes: Axes, values: np.ndarray, low: float, high: float) -> float:
    """Draw one histogram; the share of the values that lie outside [low, high]."""
    inside = (values >= low) & (values <= high)
    edges: Any = np.linspace(min(values.min(), low), max(values.max(), high), BINS + 1)
    for part, colour in ((values[inside], AFTER), (values[~inside], BEFORE)):
        axes.hist(part, edges, color=colour, histtype="stepfilled")  # a bar per bin takes seconds to draw
    for end in (low, high):
        axes.axvline(end, color=INK, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.minorticks_off()
    return float((~inside).mean())


@styled
def bits_per_weight(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits of a clustered weight in each layer, as an index and Huffman coded; a row {layer, index_bits, coded_bits}.

    The coded bits count those of the layer's centroids as well.
    """
    figure, [axes] = canvas(width=max(6.0, 0.22 * len(rows) + 2))
    for offset, column, colour, label in (
        (-0.2, "index_bits", BEFORE, "index"),
        (0.2, "coded_bits", AFTER, "Huffman coded, with the values"),
    ):
        places = [index + offset for index in range(len(rows))]
        axes.bar(places, [row[column] for row in rows], 0.4, color=colour, label=label)
    name_ticks(axes, [row["layer"] for row in rows])
    axes.set(title="Bits a weight")
    axes.legend()
    return figure


@styled
def bit_widths(costs: Mapping[tuple[str, int], float], chosen: Mapping[str, int], title: str) -> Figure:
    """The cost of each width for each layer under `title`, and the widths chosen.

    `costs` is by layer and bits, `chosen` bits by layer. A negative cost is drawn as 0.
    """
    names, widths = list(chosen), sorted({bits for _, bits in costs})
    figure, [cost_axes, width_axes] = canvas(2, width=max(9.0, 0.35 * len(names) + 3), height=3.8)
    places, thickness = np.arange(len(names)), 0.8 / len(widths)
    for number, bits in enumerate(widths):
        shade = SHADES(1 - 0.8 * number / len(widths))
        heights = [max(costs[name, bits], 0.0) for name in names]
        cost_axes.bar(places + thickness * (number + 0.5) - 0.4, heights, thickness, color=shade, label=f"{bits} bits")
    cost_axes.set_yscale("symlog", linthresh=1e-4)  # costs span decades, and some are 0
    cost_axes.set(title=title)
    cost_axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(widths), borderaxespad=0.2)
    width_axes.bar(places, [chosen[name] for name in names], 0.6, color=AFTER)
    width_axes.set(title="Bits chosen", yticks=sorted({*widths, *chosen.values()}))
    for axes in (cost_axes, width_axes):
        name_ticks(axes, names)
    return figure
