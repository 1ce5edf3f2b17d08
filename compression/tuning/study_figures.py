"""The figures of a study: Pareto front, history, importance of fields, parallel coordinates."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from optuna.visualization import matplotlib as optuna_plots

from compression.reporting.figures.tuning import pareto_front, with_pyplot
from compression.tuning.selection import completed_trials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from compression.reporting.figures.tuning import Figure

MIN_TRIALS = 4  # fewer say nothing about the importance of fields, or about values that go together


def study_figures(
    study: Study, front: Sequence[FrozenTrial], objectives: Mapping[str, bool], aliases: Mapping[int, Sequence[str]]
) -> dict[str, Figure]:
    """Draw all figures of a study: name -> figure.

    `front` is the Pareto front, `objectives` maps each to whether more of it is better, and `aliases` are those of the
    selected trials, by trial number.
    """
    trials, figures = completed_trials(study), {}
    if len(objectives) > 1:
        labelled = {f"{t.number} {', '.join(aliases.get(t.number, ()))}".strip(): t.values for t in front}
        figures["pareto-front"] = pareto_front([t.values for t in trials], labelled, list(objectives))
    for index, (name, maximize) in enumerate(objectives.items()):
        plots: dict[str, Callable[..., Any]] = {"history": optuna_plots.plot_optimization_history}
        if len(trials) >= MIN_TRIALS and len({t.values[index] for t in trials}) > 1:
            plots["importances"] = optuna_plots.plot_param_importances
            plots["parallel"] = optuna_plots.plot_parallel_coordinate
        for kind, plot in plots.items():
            # Optuna's default evaluator measures the importance for reaching low values (PED-ANOVA, Watanabe et al.
            # 2023, https://doi.org/10.24963/ijcai.2023/488), so what is maximized is negated.
            sign = -1 if kind == "importances" and maximize else 1
            figures[f"{kind}-{name}"] = optuna_figure(plot, study, index, sign, name)
    return figures


def optuna_figure(plot: Callable[..., Any], study: Study, index: int, sign: int, name: str) -> Figure:
    """Draw Optuna's `plot` of the objective `index`, called `name`, times `sign`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that the plots are experimental and that a range is one value
        return with_pyplot(lambda: plot(study, target=lambda trial: sign * trial.values[index], target_name=name))
