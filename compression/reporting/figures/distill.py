"""The figures of distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import StrMethodFormatter

from compression.reporting.figures.style import AFTER, BEFORE, FAINT, INK, SHADES, canvas, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

MOST_CLASSES = 10  # drawn of one example


@styled
def softened_outputs(
    plain: np.ndarray,
    teacher: np.ndarray,
    student: np.ndarray,
    temperature: float,
    labels: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """Class probabilities of a few examples: the teacher's, and both models' softened by `temperature`.

    `plain` holds the teacher's at temperature 1; each array is `(examples, classes)`. `labels` names the classes,
    `titles` the true class of each example. Drawn are the teacher's likeliest classes, in the order of the labels.
    """
    figure, panels = canvas(len(titles), width=2.6 * len(titles) + 1, height=3.4)
    bars = (
        ("teacher, as it answers", plain, 0.0, 0.9, FAINT),
        (f"teacher at T = {temperature:g}", teacher, -0.2, 0.38, BEFORE),
        (f"student at T = {temperature:g}", student, 0.2, 0.38, AFTER),
    )
    for example, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        classes = np.sort(np.argsort(-plain[example], kind="stable")[:MOST_CLASSES])
        rows = np.arange(len(classes))
        for label, probabilities, offset, height, colour in bars:
            axes.barh(rows + offset, probabilities[example, classes], height=height, color=colour, label=label)
        axes.set_yticks(rows, [labels[i] for i in classes], fontsize=8)
        axes.invert_yaxis()
        axes.set(title=title, xlim=(0, 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def feature_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """Maps `(height, width)` and images `(channels, height, width)` in a row, each under its title."""
    figure, panels = canvas(len(maps), width=1.9 * len(maps), height=2.4)
    for axes, (title, found) in zip(panels, maps.items(), strict=True):
        axes.imshow(found.transpose(1, 2, 0) if found.ndim == 3 else found, cmap=SHADES)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    return figure


@styled
def quality_against_parameters(points: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Quality against parameters along a chain of models.

    A point is {model, params, <metric>}, the first that of the teacher.
    """
    figure, [axes] = canvas()
    sizes, qualities = ([point[key] for point in points] for key in ("params", metric))
    axes.plot(sizes, qualities, color=AFTER, zorder=2)
    axes.scatter(sizes, qualities, s=60, color=[BEFORE, *[AFTER] * (len(points) - 1)], zorder=3)
    for point in points:
        place = point["params"], point[metric]
        axes.annotate(point["model"], place, (6, 6), textcoords="offset points", color=INK, fontsize=8)
    axes.set(xlabel="parameters", ylabel=metric.replace("_", " "), title="From the teacher to the student")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(0.2)
    axes.set_xlim(left=0)
    return figure
