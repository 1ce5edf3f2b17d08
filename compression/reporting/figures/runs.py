"""The figures of every run, and of pages over several runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from compression.reporting.figures.style import AFTER, BEFORE, FAINT, INK, SHADES, canvas, name_ticks, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"size_mb": "size of the ONNX file, MB", "latency_ms": "latency of one example, median, ms"}
MOST_NUMBERED = 12  # classes of a confusion matrix that has its shares written into the cells


@styled
def quality_against_cost(points: Sequence[Mapping[str, Any]], metric: str, cost: str) -> Figure:
    """Quality against a cost of COSTS; a point is {label, <cost>, <metric>}, the first the baseline."""
    figure, [axes] = canvas()
    if len(points) > 2:
        axes.plot([p[cost] for p in points], [p[metric] for p in points], color=FAINT, zorder=2)
    for index, point in enumerate(points):
        colour = AFTER if index else BEFORE
        axes.scatter(point[cost], point[metric], s=90, color=colour, zorder=3)
        axes.annotate(point["label"], (point[cost], point[metric]), (8, 6), textcoords="offset points", color=INK)
    axes.set(xlabel=COSTS[cost], ylabel=metric, title=f"Quality against {cost.split('_')[0]}")
    axes.ticklabel_format(useOffset=False)  # 260.5, not 0.05 above 260.45
    axes.margins(0.25)  # before a limit is set, which ends the scaling to the points
    axes.set_xlim(left=0)
    return figure


@styled
def quality_by_family(points: Sequence[Mapping[str, Any]], metric: str, cost: str) -> Figure:
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
def training_curves(history: Mapping[str, Sequence[tuple[int, float]]], metric: str) -> Figure:
    """Training loss, validation metric and learning rate by epoch; `history` has (epoch, value) by metric name."""
    names = [name for name in ("train_loss", f"val_{metric}", "learning_rate") if history.get(name)]
    columns = max(1, len(names))
    figure, panels = canvas(columns, width=3.2 * columns + 1, height=3.0)
    for axes, name in zip(panels, names, strict=False):
        epochs, values = zip(*history[name], strict=True)
        axes.plot(epochs, values, color=AFTER, marker="o", markersize=3)
        axes.set(title=name.replace("_", " "), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def confusion_matrices(before: np.ndarray | None, after: np.ndarray, labels: Sequence[str]) -> Figure:
    """Confusion matrices in shares of the row, from counts `(classes, classes)` with the true class by row."""
    matrices = [("Confusion ", after)] if before is None else [("Confusion before", before), ("Confusion after", after)]
    figure, panels = canvas(len(matrices), width=4.2 * len(matrices), height=4.2)
    for axes, (title, counts) in zip(panels, matrices, strict=True):
        # A class of which the split has no example has a row of zeros.
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        if len(labels) <= MOST_NUMBERED:
            _write_shares(axes, shares)
    return figure


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    for row, column in np.argwhere(shares >= 0.01):
        share = shares[row, column]
        colour = "white" if share > 0.5 else INK
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=6, color=colour)


@styled
def accuracy_by_class(before: np.ndarray | None, after: np.ndarray, labels: Sequence[str]) -> Figure:
    """The share of each true class that is predicted correctly, from counts `(classes, classes)`."""
    figure, [axes] = canvas(height=max(2.4, 0.32 * len(labels) + 1))
    places = np.arange(len(labels))
    for offset, name, counts, colour in ((-0.2, "before", before, BEFORE), (0.2, "after", after, AFTER)):
        if counts is not None:
            accuracy = counts.diagonal() / np.maximum(counts.sum(1), 1)
            axes.barh(places + offset, accuracy, height=0.38, color=colour, label=name)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set(title="Right answers by class", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


@styled
def bars_by_layer(
    before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]], column: str, title: str
) -> Figure:
    """A column of a table of layers as bars, before and after; a row is {layer, <column>}, an absent one has 0."""
    earlier, later = ({row["layer"]: row[column] for row in rows or []} for rows in (before, after))
    names = list(earlier | later)
    figure, [axes] = canvas(width=max(6.0, 0.22 * len(names) + 2), height=3.4)
    places = np.arange(len(names))
    if before:
        axes.bar(places - 0.2, [earlier.get(name, 0) for name in names], 0.4, color=BEFORE, label="before")
    axes.bar(places + 0.2, [later.get(name, 0) for name in names], 0.4, color=AFTER, label="after")
    name_ticks(axes, names)
    axes.set(title=title)
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))  # above the bars, not over them
    return figure
