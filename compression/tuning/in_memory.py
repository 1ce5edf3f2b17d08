"""Tuning within one process, for those who call the lab from Python: it needs no storage and no tracking server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import optuna

from compression import methods, params, tracking
from compression.deploy.measure import Measurement, add_timings, measure_model
from compression.errors import UserError
from compression.models import storage
from compression.runs import conclusion, loading
from compression.tuning.config import objective_directions, parse_constraints
from compression.tuning.selection import pareto_front, require_completed, select_trials
from compression.tuning.trial import RECIPE_ATTR, RUN_ATTR
from compression.tuning.tune import make_objective
from compression.tuning.worker import make_pruner, make_sampler, silence_optuna, study_directions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna.trial import FrozenTrial
    from torch import nn

    from compression.runs.job import Job
    from compression.tuning.config import TuningConfig
    from compression.tuning.space import Space

Kept = TypeVar("Kept")


def search(
    job: Job,
    original: nn.Module,
    space: Space,
    config: TuningConfig,
    keep: Callable[[Job, nn.Module, dict[str, Any]], Kept],
) -> tuple[list[dict[str, Any]], dict[str, Kept]]:
    """Search `space`; the rows of the front, and what `keep` makes of its selected trials, by alias.

    Trials are measured on the validation split, the selected ones on the test split. `keep` gets each of those with its
    model and the content of comparison.json while its run, which holds the artifacts, is open. Raises UserError if
    every trial was refused, or none meets the constraints.
    """
    silence_optuna()
    goals = objective_directions(config, job.task)
    parse_constraints(config, job.task)  # which refuses what it cannot read before anything is measured
    job.run.params(params.values(config) | {"recipe": methods.text(space.steps, brief=True)})
    job.run.params({f"space.{key}": str(values) for key, values in space.ranges.items()})
    sampler, pruner = make_sampler(config, space, job.settings.seed), make_pruner(config)
    study = optuna.create_study(directions=study_directions(goals), sampler=sampler, pruner=pruner)
    study.set_metric_names(list(goals))
    study.optimize(
        make_objective(job, original, space, config, goals),
        n_trials=config.trials,
        timeout=config.timeout,
        catch=(UserError,),
    )
    completed = require_completed(study, config.timeout)
    front = pareto_front(completed, goals)
    if not front:
        raise UserError(f"None of {len(completed)} trials meets the constraints: loosen them, or search longer.")
    rows = [_row(t, goals) for t in front]
    job.run.table("trials", [_row(t, goals) | {"state": t.state.name} for t in study.trials])
    job.run.table("front", rows)
    job.run.metrics({"trials": len(study.trials), "trials_on_front": len(front)})
    # Again, since the objective measured it on the validation split.
    before = measure_model(original.cpu(), job.task, job.run.folder / "onnx" / "before.onnx", job.machine.threads)
    results: dict[str, Kept] = {}
    for number, aliases in select_trials(front, goals).items():
        [trial] = [t for t in front if t.number == number]
        results |= dict.fromkeys(aliases, _tested(job, trial, original, before, keep))
    return rows, results


def _row(trial: FrozenTrial, goals: Mapping[str, bool]) -> dict[str, Any]:
    """The row of a trial in tables: number, objectives, suggested values."""
    return {"trial": trial.number, **dict(zip(goals, trial.values or [], strict=False)), **trial.params}


def _tested(
    job: Job,
    trial: FrozenTrial,
    original: nn.Module,
    before: Measurement,
    keep: Callable[[Job, nn.Module, dict[str, Any]], Kept],
) -> Kept:
    """Measure the model of a trial on the test split, in a child run; what `keep` makes of it."""
    steps = methods.parse(trial.user_attrs[RECIPE_ATTR])
    model = _trial_model(job, trial.user_attrs[RUN_ATTR], original)
    with job.child(f"{trial.number} tested", job.tags("chosen", steps)) as run:
        after = measure_model(model, job.task, run.folder / "onnx" / "0.onnx", job.machine.threads)
        measured = add_timings([before, after], job.task, job.machine.threads)
        tested = replace(job, run=run, stage="compress")
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        return keep(tested, model, conclusion.conclude(tested, steps, model, measured, seconds))


def _trial_model(job: Job, run_id: str, original: nn.Module) -> nn.Module:
    """The model that a trial's run kept: on this machine, or at the tracking server if it was delivered there."""
    for folder in (job.run.folder / "children" / run_id, tracking.run_folder(run_id)):
        if (stored := folder / "artifacts" / "model").exists():
            return storage.load(stored, like=original)
    with loading.stored_folder(f"runs:/{run_id}/model") as downloaded:
        assert downloaded is not None
        return storage.load(downloaded, like=original)
