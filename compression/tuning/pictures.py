"""What a study looks like: its front, its history, what mattered, how values went together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial
from optuna.visualization import matplotlib as drawn

from compression.reporting.figures.tuning import Figure, pareto_front, with_pyplot
from compression.tuning.chosen import completed_trials

FEWEST = 4  # trials of which importances and parallel coordinates say anything


def pictures(
    study: Study, leading: Sequence[FrozenTrial], objectives: Mapping[str, bool], names: Mapping[int, Sequence[str]]
) -> dict[str, Figure]:
    """Every picture of a study, by its name."""
    trials, found = completed_trials(study), {}
    if len(objectives) > 1:
        front = {f"{t.number} {', '.join(names.get(t.number, ()))}".strip(): t.values for t in leading}
        found["pareto-front"] = pareto_front([t.values for t in trials], front, list(objectives))
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the plots are experimental, that a range has one value
        return with_pyplot(lambda: plot(study, target=lambda trial: sign * trial.values[index], target_name=name))
