"""The pictures that every run draws. Methods draw their own with the same colours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

BEFORE, AFTER, INK, FAINT = "#8da0b6", "#1f6f5c", "#22303c", "#d9e0e6"
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", AFTER])
COSTS = {"size_mb": "size of the ONNX file, MB", "latency_ms": "latency of one example, median, ms"}
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef1f4",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 144,
}


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the lab's style; matplotlib reads it when a part is made, so it must hold for the whole drawing."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def canvas(columns: int = 1, width: float = 6.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with `columns` axes side by side, for a `styled` function; pyplot's global state is left alone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


@styled
def tradeoff(points: Sequence[dict[str, Any]], metric: str, cost: str) -> Figure:
    """Quality against a cost of COSTS; a point is {label, <cost>, <metric>}, the first the baseline."""
    figure, [axes] = canvas()
    if len(points) > 2:
        axes.plot([p[cost] for p in points], [p[metric] for p in points], color=FAINT, zorder=2)
    for index, point in enumerate(points):
        colour = AFTER if index else BEFORE
        axes.scatter(point[cost], point[metric], s=90, color=colour, zorder=3)
        axes.annotate(point["label"], (point[cost], point[metric]), (8, 6), textcoords="offset points", color=INK)
    axes.set(xlabel=COSTS[cost], ylabel=metric, title=f"Quality against {cost.split('_')[0]}")
    axes.set_xlim(left=0)
    axes.margins(0.25)
    axes.set_xlim(left=0)
    return figure


@styled
def families(points: Sequence[dict[str, Any]], metric: str, cost: str) -> Figure:
    """Quality against a cost of COSTS, a colour per family; a point is {family, label, front, <cost>, <metric>}."""
    figure, [axes] = canvas(height=4.2)
    for family in sorted({point["family"] for point in points}):
        own = [point for point in points if point["family"] == family]
        axes.scatter([p[cost] for p in own], [p[metric] for p in own], s=28, label=family)
    front = sorted((p for p in points if p["front"]), key=lambda p: p[cost])
    axes.plot([p[cost] for p in front], [p[metric] for p in front], color=FAINT, zorder=0)
    for point in front:
        axes.annotate(point["label"], (point[cost], point[metric]), (5, 5), textcoords="offset points", fontsize=7)
    axes.set(xlabel=COSTS[cost], ylabel=metric, title=f"Quality against {cost.split('_')[0]}")
    axes.legend(fontsize=8)
    return figure


@styled
def curves(history: dict[str, list[tuple[int, float]]], metric: str) -> Figure:
    """Training loss and validation metric by epoch."""
    wanted = [name for name in ("train_loss", f"val_{metric}", "learning_rate") if history.get(name)]
    figure, axes = canvas(max(1, len(wanted)), width=3.2 * max(1, len(wanted)) + 1, height=3.0)
    for place, name in zip(axes, wanted, strict=False):
        steps, values = zip(*history[name], strict=True)
        place.plot(steps, values, color=AFTER, marker="o", markersize=3)
        place.set(title=name.replace("_", " "), xlabel="epoch")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def confusion(before: np.ndarray | None, after: np.ndarray, labels: Sequence[str]) -> Figure:
    """Confusion matrices `(classes, classes)`, true class by row, in shares of the row."""
    shown = [("before", before), ("after", after)] if before is not None else [("", after)]
    figure, axes = canvas(len(shown), width=4.2 * len(shown), height=4.2)
    for place, (title, counts) in zip(axes, shown, strict=True):
        assert counts is not None
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        place.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
        place.grid(visible=False)
        ticks = range(len(labels))
        place.set_xticks(ticks, labels, rotation=90, fontsize=8)
        place.set_yticks(ticks, labels, fontsize=8)
        place.set(title=f"Confusion {title}", xlabel="predicted", ylabel="true")
        for row, column in np.argwhere(shares >= 0.01) if len(labels) <= 12 else []:
            share = shares[row, column]
            place.text(
                column,
                row,
                f"{share:.0%}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if share > 0.5 else INK,
            )
    return figure


@styled
def per_class(before: np.ndarray | None, after: np.ndarray, labels: Sequence[str]) -> Figure:
    """Share of each true class that is answered rightly, before and after."""
    figure, [axes] = canvas(height=max(2.4, 0.32 * len(labels) + 1))
    places = np.arange(len(labels))
    for offset, name, counts, colour in ((-0.2, "before", before, BEFORE), (0.2, "after", after, AFTER)):
        if counts is not None:
            right = counts.diagonal() / np.maximum(counts.sum(1), 1)
            axes.barh(places + offset, right, height=0.38, color=colour, label=name)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set(title="Right answers by class", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


@styled
def layers(before: list[dict[str, Any]] | None, after: list[dict[str, Any]], column: str, title: str) -> Figure:
    """A column of the layer table as bars, before and after."""
    earlier, later = ({row["layer"]: row[column] for row in rows or []} for rows in (before, after))
    names = list(earlier | later)
    figure, [axes] = canvas(width=max(6.0, 0.22 * len(names) + 2), height=3.4)
    places = np.arange(len(names))
    if before:
        axes.bar(places - 0.2, [earlier.get(name, 0) for name in names], 0.4, color=BEFORE, label="before")
    axes.bar(places + 0.2, [later.get(name, 0) for name in names], 0.4, color=AFTER, label="after")
    axes.set_xticks(places, names, rotation=90, fontsize=max(5, 9 - len(names) // 20))
    axes.set(title=title)
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))  # above the bars, not over them
    return figure
