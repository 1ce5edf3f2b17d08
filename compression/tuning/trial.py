"""One trial: steps as the sampler suggests them, measured on the validation split, as a child run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna import Trial
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from compression import methods, tracking
from compression.deploy.measure import Measurement, examine, timed
from compression.errors import UserError
from compression.methods.base import Method
from compression.reporting.pareto import dominates
from compression.runs import baseline, chain, conclusion, results
from compression.runs.job import Job
from compression.tuning.cache import StepCache
from compression.tuning.plan import Constraint
from compression.tuning.space import Space

# What a trial says of itself in Optuna.
RUN_ATTR, WORKER_ATTR, RECIPE_ATTR, FEASIBLE_ATTR, REFUSED_ATTR = "run", "worker", "recipe", "is_feasible", "refused"


class PruningLogger:
    """A run as a trial's Record: Optuna hears of every epoch, and stops where it has seen enough."""

    def __init__(self, run: tracking.Run, trial: Trial, metric: str) -> None:
        self.run, self.trial, self.metric = run, trial, f"val_{metric}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.run.metrics(values, step)
        if step is not None and self.metric in values:
            self.trial.report(values[self.metric], step)
            if self.trial.should_prune():
                raise optuna.TrialPruned(f"Stopped after epoch {step}: other trials were further by then.")


@dataclass(frozen=True)
class Objective:
    """What turns an Optuna trial into figures. `job.task` has the validation split in the place of the test split."""

    job: Job
    space: Space
    objectives: Mapping[str, bool]
    bounds: Sequence[Constraint]
    prunes: bool
    cache: StepCache
    original: nn.Module
    before: Measurement

    def __call__(self, trial: Trial) -> list[float]:
        trial.set_user_attr(WORKER_ATTR, self.job.run.id)
        steps = self.space.steps_of(trial)
        tags = self.job.tags("trial", steps) | {"split": "validation", "trial": str(trial.number)}
        tags |= {"study": trial.study.study_name}
        stopped = None
        with self.job.child(f"trial {trial.number}", tags) as run:
            trial.set_user_attr(RUN_ATTR, run.id)
            trial.set_user_attr(RECIPE_ATTR, methods.text(steps))
            try:
                figures = self.figures(replace(self.job, run=run, stage="step"), steps, trial)
            except optuna.TrialPruned as stop:
                stopped = stop
                run.note(str(stop))
            except UserError as error:
                trial.set_user_attr(REFUSED_ATTR, str(error))  # the end of this trial, and not of the study
                raise
            run.tag("trial.state", "PRUNED" if stopped else "COMPLETE")
        if stopped:
            raise stopped
        tracking.notify(f"trial {trial.number}: " + ", ".join(f"{n} {figures[n]:.4g}" for n in self.objectives))
        return [figures[name] for name in self.objectives]

    def figures(self, job: Job, steps: Sequence[Method], trial: Trial) -> dict[str, float]:
        """The figures of the model after `steps`, against the original; all of them in the run."""
        steps = job.resolved(steps)
        model, seconds = self.taken(job, steps, trial)
        found = examine(model.cpu(), job.task, job.run.folder / "onnx" / "0.onnx", job.machine.threads)
        pair = timed([self.before, found], job.task, job.machine.threads)
        figures = results.summarize(job.task, pair, seconds)
        job.run.metrics(figures)
        for bound in self.bounds:
            trial.set_constraint(bound.figure, bound.excess(figures))
        is_feasible = all(bound.excess(figures) <= 0 for bound in self.bounds)
        trial.set_user_attr(FEASIBLE_ATTR, is_feasible)
        if is_feasible and self.leads([figures[name] for name in self.objectives], trial):
            results.keep_model(job.run, job.task, model, conclusion.metadata(job, steps))
        return figures

    def taken(self, job: Job, steps: Sequence[Method], trial: Trial) -> tuple[nn.Module, float]:
        """The model after `steps` and the seconds they took, from the longest beginning that is remembered."""
        done, model, seconds = self.remembered(steps)
        job.run.metrics({"cached_steps": done, "cached_seconds": seconds})
        context = baseline.make_context(job, self.original)
        if self.prunes:
            context = replace(context, record=PruningLogger(job.run, trial, job.task.metric))
        for number, step in enumerate(steps[done:], done + 1):
            step_context = context.for_step(number, methods.name_of(step))
            model, took = chain.apply_step(step, model.to(job.machine.device), step_context)
            seconds += took
            if self.space.repeats(number):
                self.cache.keep(steps[:number], model, seconds)
        return model, seconds

    def remembered(self, steps: Sequence[Method]) -> tuple[int, nn.Module, float]:
        for number in range(len(steps), 0, -1):
            if self.space.repeats(number) and (found := self.cache.find(steps[:number])):
                return number, *found
        return 0, copy.deepcopy(self.original).requires_grad_(True), 0.0

    def leads(self, values: Sequence[float], trial: Trial) -> bool:
        """Whether no finished trial beats these values: only such a one can be chosen in the end."""
        others = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        more = list(self.objectives.values())
        return not any(dominates(other.values, values, more) for other in others if is_feasible(other))


def is_feasible(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(FEASIBLE_ATTR, False)
