"""The objective function of tuning: a trial applies suggested steps, in a child run, and measures the result."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from compression import methods, tracking
from compression.deploy.measure import Measurement, add_timings, measure_model
from compression.errors import UserError
from compression.reporting.pareto import dominates
from compression.runs import baseline, chain, conclusion, results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Trial
    from optuna.trial import FrozenTrial
    from torch import nn

    from compression.methods.base import Method
    from compression.runs.job import Job
    from compression.tuning.cache import StepCache, TrainedModels
    from compression.tuning.config import Constraint
    from compression.tuning.space import Space

# The user attributes of a trial in Optuna: run id of the trial and of its worker, recipe, whether all constraints hold,
# and the message of a trial that was refused.
RUN_ATTR, WORKER_ATTR, RECIPE_ATTR, FEASIBLE_ATTR, REFUSED_ATTR = "run", "worker", "recipe", "feasible", "refused"


class PruningLogger:
    """A run logger that reports the metric of every epoch to Optuna, and stops the trial if its pruner says so.

    Passes everything else on to the trial's run.
    """

    def __init__(self, run: tracking.Run, trial: Trial, metric: str) -> None:
        self.run, self.trial, self.metric = run, trial, f"val_{metric}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Log metrics. Raises TrialPruned after an epoch with which the pruner stops the trial."""
        self.run.metrics(values, step)
        if step is not None and self.metric in values:
            # Epochs count on over all trainings of a trial, so a chain reports none twice.
            self.trial.report(values[self.metric], step)
            if self.trial.should_prune():
                raise optuna.TrialPruned(f"Stopped after epoch {step}: other trials were better by then.")


@dataclass(frozen=True)
class Objective:
    """The function that Optuna optimizes: from a trial's suggested values to the values of the objectives.

    `job.task` has the validation split in place of the test split. `objectives` maps each to whether more of it is
    better.
    """

    job: Job
    space: Space
    objectives: Mapping[str, bool]
    constraints: Sequence[Constraint]
    stops_early: bool  # whether a pruner gets the metric of every epoch
    trained: TrainedModels
    cache: StepCache
    original: nn.Module
    original_measurement: Measurement

    def __call__(self, trial: Trial) -> list[float]:
        """Run the trial in a child run; return the values of the objectives.

        Raises TrialPruned if the pruner stops it, and UserError if the suggested values cannot be combined.
        """
        trial.set_user_attr(WORKER_ATTR, self.job.run.id)
        steps = self.space.suggest_steps(trial)
        tags = self.job.tags("trial", steps) | {"split": "validation", "trial": str(trial.number)}
        tags |= {"study": trial.study.study_name}
        pruned = None
        with self.job.child(f"trial {trial.number}", tags) as run:
            trial.set_user_attr(RUN_ATTR, run.id)
            trial.set_user_attr(RECIPE_ATTR, methods.text(steps))
            try:
                metrics = self.measure(replace(self.job, run=run, stage="step"), steps, trial)
            except optuna.TrialPruned as stop:
                pruned = stop  # raised again below: the child run ends as FINISHED
                run.note(str(stop))
            except UserError as error:
                trial.set_user_attr(REFUSED_ATTR, str(error))  # the worker goes on with other trials
                raise
            run.tag("trial.state", "PRUNED" if pruned else "COMPLETE")
        if pruned:
            raise pruned
        tracking.notify(f"trial {trial.number}: " + ", ".join(f"{n} {metrics[n]:.4g}" for n in self.objectives))
        return self.values(metrics)

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Return the values of the objectives. Raises UserError if one is missing: a ratio to an original's 0."""
        if missing := [name for name in self.objectives if name not in metrics]:
            raise UserError(f"There is no {', '.join(missing)}: the original's value is 0; take another objective.")
        return [metrics[name] for name in self.objectives]

    def measure(self, job: Job, steps: Sequence[Method], trial: Trial) -> dict[str, float]:
        """Apply `steps`; log and return the result's metrics, compared with the original model.

        Keeps the model if it may end up on the Pareto front.
        """
        steps = job.resolved(steps)
        model, seconds = self.apply_steps(job, steps, trial)
        measurement = measure_model(model.cpu(), job.task, job.run.folder / "onnx" / "0.onnx", job.machine.threads)
        # The original is timed again beside each result: trials lie far apart, and a machine's pace changes.
        pair = add_timings([self.original_measurement, measurement], job.task, job.machine.threads)
        metrics = results.summarize(job.task, pair, seconds)
        job.run.metrics(metrics)
        for constraint in self.constraints:
            trial.set_constraint(constraint.metric, constraint.excess(metrics))
        feasible = all(constraint.excess(metrics) <= 0 for constraint in self.constraints)
        trial.set_user_attr(FEASIBLE_ATTR, feasible)
        # Only what may be chosen in the end is worth its disk space; a later trial may still dominate it.
        if feasible and self.is_nondominated(self.values(metrics), trial):
            results.keep_model(job.run, job.task, model, conclusion.metadata(job, steps))
        return metrics

    def apply_steps(self, job: Job, steps: Sequence[Method], trial: Trial) -> tuple[nn.Module, float]:
        """Return the model after `steps` and how long they took (s), from the longest prefix in the cache."""
        cached, model, seconds = self.load_cached_steps(steps)
        job.run.metrics({"cached_steps": cached, "cached_seconds": seconds})
        context = baseline.make_context(job, self.original)
        context = replace(context, load=lambda spec: self.trained.load(job, spec))
        if self.stops_early:
            context = replace(context, record=PruningLogger(job.run, trial, job.task.metric))
        for number, step in enumerate(steps[cached:], cached + 1):
            step_context = context.for_step(number, methods.name_of(step))
            model, step_seconds = chain.apply_step(step, model.to(job.machine.device), step_context)
            seconds += step_seconds
            if self.space.can_share(number):
                self.cache.save(steps[:number], model, seconds)
        return model, seconds

    def load_cached_steps(self, steps: Sequence[Method]) -> tuple[int, nn.Module, float]:
        """Return how many first steps are in the cache, the model after them, and how long they took (s)."""
        # From the longest prefix down. In a grid of 30 trials this spared 48 of 109 s of steps (11 of 52 on digits).
        for number in range(len(steps), 0, -1):
            if self.space.can_share(number) and (cached := self.cache.find(steps[:number])):
                return number, *cached
        return 0, copy.deepcopy(self.original).requires_grad_(True), 0.0

    def is_nondominated(self, values: Sequence[float], trial: Trial) -> bool:
        """Whether no completed feasible trial dominates `values`: no other model can be selected in the end."""
        others = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        maximize = list(self.objectives.values())
        return not any(dominates(other.values, values, maximize) for other in others if is_feasible(other))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a completed trial meets all constraints."""
    return bool(trial.user_attrs.get(FEASIBLE_ATTR, False))
