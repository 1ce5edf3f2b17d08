"""The figures of tuning."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from compression.reporting.figures.style import AFTER, BEFORE, INK, STYLE, canvas, styled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

__all__ = ["Figure", "pareto_front", "with_pyplot"]


@styled
def pareto_front(
    trials: Sequence[Sequence[float]],
    front: Mapping[str, Sequence[float]],
    objectives: Sequence[str],
) -> Figure:
    """Every trial and the Pareto front, a panel for each pair of objectives.

    A trial is its values, one for each of `objectives`; those on the front come by the label they are drawn with.
    """
    pairs = list(combinations(range(len(objectives)), 2))
    figure, panels = canvas(len(pairs), width=5.2 * len(pairs), height=4.2)
    everywhere, best = np.array(trials), np.array(list(front.values()))
    for axes, (one, other) in zip(panels, pairs, strict=True):
        axes.scatter(everywhere[:, other], everywhere[:, one], s=24, color=BEFORE, label="trials")
        order = best[:, other].argsort()
        axes.plot(best[order, other], best[order, one], color=AFTER, marker="o", label="front")
        for label, values in front.items():
            place = (values[other], values[one])
            axes.annotate(label, place, (6, 6), textcoords="offset points", fontsize=7, color=INK)
        axes.set(
            xlabel=objectives[other], ylabel=objectives[one], title=f"{objectives[one]} against {objectives[other]}"
        )
        axes.legend()
    return figure


def with_pyplot(draw: Callable[[], Axes]) -> Figure:
    """The figure that a library draws through pyplot, in the lab's style and size; pyplot forgets it."""
    with plt.rc_context(STYLE):
        figure = draw().figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(7.0, 4.2)
    plt.close(figure)
    return figure
