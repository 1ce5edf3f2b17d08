"""Tuning from its configuration to its report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from compression import methods, params, tracking
from compression.deploy.measure import Measurement, add_timings, measure_model
from compression.errors import UserError
from compression.reporting import report
from compression.runs import baseline, conclusion, loading
from compression.runs.job import Job, started
from compression.tuning.cache import TrainedModels, digest, open_cache
from compression.tuning.config import TuningConfig, objective_directions, parse_constraints
from compression.tuning.selection import pareto_front, require_completed, select_trials
from compression.tuning.space import Space, build_space
from compression.tuning.study_figures import study_figures
from compression.tuning.trial import RECIPE_ATTR, RUN_ATTR, WORKER_ATTR, Objective
from compression.tuning.worker import Worker, is_finished, open_study, silence_optuna

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from torch import nn

    from compression.runs.settings import Settings


def tune(settings: Settings, recipe: str, config: TuningConfig) -> dict[str, Any]:
    """Search the fields that `recipe` leaves out; return the content of the run's tuning.json.

    Trials are measured on the validation split, and only the selected ones on the test split. Raises UserError if the
    configuration or the recipe is invalid, if the study was begun with other settings, or if every trial was refused.
    """
    silence_optuna()
    search = build_space(recipe, config.space)
    methods.check_order(search.steps)
    with started(settings, "tune", search.steps) as job:
        if job.machine.accelerator.num_processes > 1:
            raise UserError("tune runs in one process: start several workers with the same study=NAME instead.")
        goals = objective_directions(config, job.task)
        parse_constraints(config, job.task)  # which refuses what it cannot read before a baseline is trained
        job = baseline.with_baseline(job)
        definition = study_definition(job, recipe, config, search, goals)
        name = config.study or study_name(definition, search)
        job.run.params(params.values(config) | {"recipe": recipe, "study": name})
        job.run.params({f"space.{key}": str(values) for key, values in search.ranges.items()})
        job.run.tag("study", name)
        # A worker that was not told a baseline finds or trains one of its own, and then takes the study's.
        own_keys = () if settings.baseline else ("baseline",)
        study = open_study(config, name, search, goals, definition, own_keys)
        job = replace(job, settings=replace(job.settings, baseline=study.user_attrs["about"]["baseline"]))
        original = loading.open_model(job.settings.baseline, job.task).requires_grad_(False)
        Worker(study, config, make_objective(job, original, search, config, goals)).run()
        tracking.sync()  # also ends the runs of workers that were killed on this machine
        return StudySummary(job, study, search, goals, config.timeout).log()


def study_name(definition: dict[str, Any], search: Space) -> str:
    """Name a study by its definition, so that repeating the command continues the study."""
    text = f"{definition['task']}-{methods.text(search.steps, brief=True)}-{digest(definition)[:6]}"
    return re.sub(r"[/+]", "-", text)


def study_definition(
    job: Job, recipe: str, config: TuningConfig, search: Space, goals: Mapping[str, bool]
) -> dict[str, Any]:
    """Return what all workers of a study must agree on."""
    return {
        "recipe": recipe,
        "space": {key: str(values) for key, values in search.ranges.items()},
        "objectives": list(goals),
        # Written as 0.1 stored it, so that a study begun then is still gone on with.
        "constraints": ",".join(f"{name}={ends}" for name, ends in config.constraints.items()),
        "task": job.task.name,
        "data": job.task.digest,
        "baseline": job.settings.baseline,
        "seed": job.settings.seed,
    }


def make_objective(
    job: Job, original: nn.Module, search: Space, config: TuningConfig, goals: Mapping[str, bool]
) -> Objective:
    """Prepare the objective function: measure the original model on the validation split."""
    job = replace(job, task=replace(job.task, test=job.task.validation, further_test_splits={}))
    measurement = measure_model(original, job.task, job.run.folder / "onnx" / "before.onnx", job.machine.threads)
    trained = TrainedModels(job)
    cache = open_cache(job, original, trained)
    original.to(job.machine.device)
    constraints = parse_constraints(config, job.task)
    return Objective(job, search, goals, constraints, config.pruner != "none", trained, cache, original, measurement)


@dataclass(frozen=True)
class StudySummary:
    """What a worker logs in its own run when no trial is left: figures, tables, the report, the selected models."""

    job: Job
    study: Study
    space: Space
    objectives: Mapping[str, bool]
    timeout: float | None = None  # s, after which the worker began no more trials

    def log(self) -> dict[str, Any]:
        """Log everything; return the content of tuning.json.

        The worker that finished the study also tests the selected trials. Raises UserError if no trial completed.
        """
        trials = self.study.get_trials(deepcopy=False)
        completed = require_completed(self.study, self.timeout)
        front = pareto_front(completed, self.objectives)
        aliases = select_trials(front, self.objectives) if front else {}
        if not front:
            self.job.run.warn("No trial meets the constraints: there is nothing to choose from.")
        selected = [t for t in front if t.number in aliases] if self.is_last_worker(completed) else []
        tested = self.test_trials(selected, aliases)
        front_rows = [self.trial_row(t) | {"aliases": " ".join(aliases.get(t.number, ()))} for t in front]
        self.job.run.table("trials", [self.trial_row(t) for t in trials])
        self.job.run.table("front", front_rows)
        self.job.run.table("chosen", tested)
        self.job.run.metrics({"trials": sum(map(is_finished, trials)), "trials_on_front": len(front)})
        content = {
            "title": f"tune {methods.text(self.space.steps, brief=True)} on {self.job.task.name}",
            "run": self.job.run.id,
            "study": self.study.study_name,
            "objectives": list(self.objectives),
            "states": {s.name.lower(): sum(t.state == s for t in trials) for s in TrialState},
            "front": front_rows,
            "chosen": tested,
            "warnings": self.job.run.warnings,
        }
        self.log_report(content, front, aliases)
        return content

    def log_report(
        self, content: dict[str, Any], front: Sequence[FrozenTrial], aliases: Mapping[int, Sequence[str]]
    ) -> None:
        """Log the figures, report.html and tuning.json."""
        run = self.job.run
        figures = study_figures(self.study, front, self.objectives, aliases) if front else {}
        for name, figure in figures.items():
            run.figure(name, figure)
        images = {name.replace("-", " "): report.data_uri(figure) for name, figure in figures.items()}
        page = run.artifact_folder / "report.html"
        page.write_text(report.render_page("tuning.html", content=content, figures=images), encoding="utf-8")
        run.artifact(page)
        data = run.artifact_folder / "tuning.json"
        data.write_text(json.dumps(content, indent=1), encoding="utf-8")
        run.artifact(data)

    def is_last_worker(self, completed: Sequence[FrozenTrial]) -> bool:
        """Whether this worker tests the selected trials: it finished the last trial, or had none to do."""
        # All workers see the same trials, so they agree; should two have ended in one moment, the number decides.
        last = max(completed, key=lambda t: (t.datetime_complete, t.number))
        workers = {t.user_attrs[WORKER_ATTR] for t in completed}
        own_id = self.job.run.id
        return last.user_attrs[WORKER_ATTR] == own_id or own_id not in workers

    def trial_row(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the row of a trial in tables: number, objectives, suggested values, state, recipe, run id."""
        values = dict(zip(self.objectives, trial.values or [], strict=False))
        attributes = {name: trial.user_attrs.get(name, "") for name in (RECIPE_ATTR, RUN_ATTR)}
        return {"trial": trial.number, **values, **trial.params, "state": trial.state.name, **attributes}

    def test_trials(self, trials: Sequence[FrozenTrial], aliases: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
        """Measure the trials' models on the test split, each in a child run, and register them; return table rows."""
        if not trials:
            return []
        original = loading.open_model(self.job.settings.baseline, self.job.task)
        file = self.job.run.folder / "onnx" / "tested.onnx"
        before = measure_model(original, self.job.task, file, self.job.machine.threads)
        return [self.test_trial(trial, aliases[trial.number], before) for trial in trials]

    def test_trial(self, trial: FrozenTrial, aliases: Sequence[str], before: Measurement) -> dict[str, Any]:
        """Measure one model on the test split, in a child run, and register it; `before` is the original's."""
        steps = methods.parse(trial.user_attrs[RECIPE_ATTR])
        tags = self.job.tags("chosen", steps) | {"study": self.study.study_name}
        tags |= {"trial": str(trial.number), "aliases": " ".join(aliases)}
        with self.job.child(f"trial {trial.number} tested: {', '.join(aliases)}", tags) as run:
            model = loading.open_model(f"runs:/{trial.user_attrs[RUN_ATTR]}/model", self.job.task)
            file = self.job.run.folder / "onnx" / f"{trial.number}.onnx"
            after = measure_model(model, self.job.task, file, self.job.machine.threads)
            measured = add_timings([before, after], self.job.task, self.job.machine.threads)
            # The model is read back here; how long its steps took, cached ones included, the trial's run has.
            seconds = tracking.get_run(trial.user_attrs[RUN_ATTR]).metrics["seconds"]
            job = replace(self.job, run=run, stage="compress")
            content = conclusion.conclude(job, steps, model, measured, seconds)
        metrics = {name: content["metrics"].get(name) for name in self.objectives}
        version = self.register(run.id, aliases)
        row = {"trial": trial.number, "aliases": " ".join(aliases), **metrics, "version": version}
        return row | {RUN_ATTR: run.id, "command": content["command"]}

    def register(self, run_id: str, aliases: Sequence[str]) -> str:
        """Register the run's model; return its version, or "" with a warning if the registry refuses."""
        try:
            return tracking.register_model(self.study.study_name, run_id, aliases)
        except UserError as error:
            self.job.run.warn(str(error))
            return ""


def table(content: dict[str, Any]) -> str:
    """Format the Pareto front, and the selected trials on the test split, for a terminal."""
    columns = ["trial", "aliases", *content["objectives"]]
    parts = [("The front, on the validation split:", content["front"])]
    if content["chosen"]:
        parts.append(("Chosen, on the test split:", content["chosen"]))
    return "\n\n".join(f"{title}\n{report.text_table(rows, columns)}" for title, rows in parts)
