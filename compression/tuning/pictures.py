"""What a study looks like: its front, its history, what mattered, how values went together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from optuna import Study
from optuna.trial import FrozenTrial
from optuna.visualization import matplotlib as drawn

from compression.reporting import figures
from compression.tuning.chosen import complete

FEWEST = 4  # trials of which importances and parallel coordinates say anything


def pictures(
    study: Study, leading: Sequence[FrozenTrial], objectives: Mapping[str, bool], names: Mapping[int, Sequence[str]]
) -> dict[str, Figure]:
    """Every picture of a study, by its name."""
    found = {"pareto-front": front(complete(study), leading, list(objectives), names)} if len(objectives) > 1 else {}
    trials = complete(study)
    for index, (name, more) in enumerate(objectives.items()):
        varied = len(trials) >= FEWEST and len({t.values[index] for t in trials}) > 1
        wanted: dict[str, Any] = {"history": drawn.plot_optimization_history}
        if varied:
            wanted |= {"importances": drawn.plot_param_importances, "parallel": drawn.plot_parallel_coordinate}
        for kind, plot in wanted.items():
            # Importances are those of reaching low values: https://doi.org/10.24963/ijcai.2023/488.
            sign = -1 if kind == "importances" and more else 1
            found[f"{kind}-{name}"] = optunas(plot, study, index, sign, name)
    return found


def optunas(plot: Any, study: Study, index: int, sign: int, name: str) -> Figure:
    """A picture that Optuna draws of one objective, times `sign`."""
    with warnings.catch_warnings(), plt.rc_context(figures.STYLE):
        warnings.simplefilter("ignore")  # that the plots are experimental, that a range has one value
        axes = plot(study, target=lambda trial: sign * trial.values[index], target_name=name)
        figure = axes.figure
        figure.set_size_inches(7.0, 4.2)
        plt.close(figure)
    return figure


@figures.styled
def front(
    trials: Sequence[FrozenTrial],
    leading: Sequence[FrozenTrial],
    objectives: Sequence[str],
    names: Mapping[int, Sequence[str]],
) -> Figure:
    """Every trial and the front, a panel for each pair of objectives; the chosen trials carry their names."""
    pairs = list(combinations(range(len(objectives)), 2))
    figure, panels = figures.canvas(len(pairs), width=5.2 * len(pairs), height=4.2)
    for axes, (one, other) in zip(panels, pairs, strict=True):
        every, best = (np.array([t.values for t in group]) for group in (trials, leading))
        axes.scatter(every[:, other], every[:, one], s=24, color=figures.BEFORE, label="trials")
        order = best[:, other].argsort()
        axes.plot(best[order, other], best[order, one], color=figures.AFTER, marker="o", label="front")
        for trial in leading:
            label = f"{trial.number} {', '.join(names.get(trial.number, ()))}".strip()
            place = (trial.values[other], trial.values[one])
            axes.annotate(label, place, (6, 6), textcoords="offset points", fontsize=7, color=figures.INK)
        title = f"{objectives[one]} against {objectives[other]}"
        axes.set(xlabel=objectives[other], ylabel=objectives[one], title=title)
        axes.legend()
    return figure
