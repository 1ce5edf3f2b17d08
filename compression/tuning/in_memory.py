"""Tuning within one process, for those who call the lab from Python: no storage, no tracking server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna

from compression import methods
from compression.deploy.measure import Measurement, add_timings, measure_model
from compression.errors import UserError
from compression.models import storage
from compression.runs import conclusion
from compression.tuning.config import objective_directions
from compression.tuning.selection import completed_trials, pareto_front, select_trials
from compression.tuning.trial import RECIPE_ATTR, REFUSED_ATTR, RUN_ATTR
from compression.tuning.tune import make_objective
from compression.tuning.worker import make_pruner, make_sampler, silence_optuna, study_directions

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch import nn

    from compression.runs.job import Job
    from compression.tuning.config import TuningConfig
    from compression.tuning.space import Space


@dataclass(frozen=True)
class Selected:
    """A trial of the Pareto front: its model, and the content of comparison.json of the test split."""

    aliases: list[str]  # what it is the best in: smallest, fastest, knee, …
    model: nn.Module
    content: dict[str, Any]
    job: Job  # with the run that holds its artifacts


def search(
    job: Job, original: nn.Module, space: Space, config: TuningConfig
) -> tuple[list[dict[str, Any]], list[Selected]]:
    """Search `space`; the rows of the front, and its selected trials.

    Trials are measured on the validation split, the selected ones on the test split. Raises UserError if every trial
    was refused.
    """
    silence_optuna()
    goals = objective_directions(config, job.task.metric)
    sampler, pruner = make_sampler(config, space, job.settings.seed), make_pruner(config)
    study = optuna.create_study(directions=study_directions(goals), sampler=sampler, pruner=pruner)
    study.set_metric_names(list(goals))
    study.optimize(
        make_objective(job, original, space, config, goals),
        n_trials=config.trials,
        timeout=config.timeout,
        catch=(UserError,),
    )
    completed = completed_trials(study)
    if not completed:
        refusals = [t.user_attrs[REFUSED_ATTR] for t in study.trials if REFUSED_ATTR in t.user_attrs]
        raise UserError(f"No trial came to its end; the last was refused: {' '.join(refusals[-1:])}")
    front = pareto_front(completed, goals)
    if not front:
        raise UserError(f"None of {len(completed)} trials meets the constraints: loosen them, or search longer.")
    rows = [{"trial": t.number, **dict(zip(goals, t.values, strict=True)), **t.params} for t in front]
    aliases = select_trials(front, goals)
    file = job.run.folder / "onnx" / "before.onnx"
    before = measure_model(original.cpu(), job.task, file, job.machine.threads)
    return rows, [_tested(job, t, aliases[t.number], original, before) for t in front if t.number in aliases]


def _tested(job: Job, trial: FrozenTrial, aliases: list[str], original: nn.Module, before: Measurement) -> Selected:
    """Measure the model of a trial on the test split."""
    steps = methods.parse(trial.user_attrs[RECIPE_ATTR])
    stored = job.run.folder / "children" / trial.user_attrs[RUN_ATTR] / "artifacts" / "model"
    model = storage.load(stored, like=original)
    with job.child(f"{trial.number} tested", job.tags("chosen", steps)) as run:
        after = measure_model(model, job.task, run.folder / "onnx" / "0.onnx", job.machine.threads)
        measured = add_timings([before, after], job.task, job.machine.threads)
        tested = replace(job, run=run, stage="compress")
        content = conclusion.conclude(
            tested, steps, model, measured, (trial.duration.total_seconds() if trial.duration else 0.0)
        )
        return Selected(aliases, model, content, tested)
