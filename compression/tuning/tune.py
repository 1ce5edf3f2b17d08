"""A tuning from its settings to its report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from compression import methods, params, tracking
from compression.deploy.measure import examine, timed
from compression.errors import UserError
from compression.reporting import report
from compression.runs import baseline, conclusion, loading
from compression.runs.job import Job, started
from compression.runs.settings import Settings
from compression.tuning.cache import open_cache, digest
from compression.tuning.chosen import select_trials, completed_trials, pareto_front
from compression.tuning.pictures import pictures
from compression.tuning.plan import TuningConfig, bounds, objectives
from compression.tuning.space import Space, space
from compression.tuning.trial import RECIPE_ATTR, REFUSED_ATTR, RUN_ATTR, WORKER_ATTR, Objective
from compression.tuning.worker import Worker, is_finished, open_study, silence_optuna


def tune(settings: Settings, recipe: str, plan: TuningConfig) -> dict[str, Any]:
    """Search what `recipe` leaves open; what the run keeps as tuning.json.

    Trials are measured on the validation split; the test split is for the chosen ones. Raises UserError where every
    trial was refused.
    """
    silence_optuna()
    searched = space(recipe, plan.space)
    methods.check_order(searched.steps)
    with started(settings, "tune", searched.steps) as job:
        if job.machine.accelerator.num_processes > 1:
            raise UserError("tune runs in one process: start several workers with the same study=NAME instead.")
        wanted = objectives(plan, job.task.metric)
        job = baseline.with_baseline(job)
        about = study_definition(job, recipe, plan, searched, wanted)
        name = plan.study or study_name(about, searched)
        job.run.params(params.values(plan) | {"recipe": recipe, "study": name})
        job.run.params({f"space.{key}": str(found) for key, found in searched.ranges.items()})
        job.run.tag("study", name)
        study = open_study(plan, name, searched, wanted, about, own=() if settings.baseline else ("baseline",))
        job = replace(job, settings=replace(job.settings, baseline=study.user_attrs["about"]["baseline"]))
        Worker(study, plan, make_objective(job, searched, plan, wanted)).work()
        tracking.sync()  # the last words of workers that died on this machine
        return Conclusion(job, study, searched, wanted).content()


def study_name(about: dict[str, Any], searched: Space) -> str:
    """A name for a study: the same for the same question, so that asking it again goes on with it."""
    said = f"{about['task']}-{methods.text(searched.steps, brief=True)}-{digest(about)[:6]}"
    return re.sub(r"[/+]", "-", said)


def study_definition(job: Job, recipe: str, plan: TuningConfig, searched: Space, wanted: Mapping[str, bool]) -> dict[str, Any]:
    """What all workers of a study must agree on."""
    return {
        "recipe": recipe,
        "space": {key: str(found) for key, found in searched.ranges.items()},
        "objectives": list(wanted),
        "constraints": plan.constraints,
        "task": job.task.name,
        "data": job.task.digest,
        "baseline": job.settings.baseline,
        "seed": job.settings.seed,
    }


def make_objective(job: Job, searched: Space, plan: TuningConfig, wanted: Mapping[str, bool]) -> Objective:
    """What every trial needs, made once: the original, and its figures on the validation split."""
    selecting = replace(job, task=replace(job.task, test=job.task.validation, also={}))
    original = loading.open_model(job.settings.baseline, job.task).requires_grad_(False)
    before = examine(original, selecting.task, job.run.folder / "onnx" / "before.onnx", job.machine.threads)
    remembered = open_cache(job, original)
    original.to(job.machine.device)
    limits = bounds(plan, job.task.metric)
    return Objective(selecting, searched, wanted, limits, plan.pruner != "none", remembered, original, before)


@dataclass(frozen=True)
class Conclusion:
    """What a worker leaves in its run when no trial is left to it."""

    job: Job
    study: Study
    space: Space
    objectives: Mapping[str, bool]

    def content(self) -> dict[str, Any]:
        """Pictures, tables, the report; and the chosen trials on the test split, if this worker ended the study."""
        trials = self.study.get_trials(deepcopy=False)
        done = completed_trials(self.study)
        if not done:
            said = [t.user_attrs[REFUSED_ATTR] for t in trials if REFUSED_ATTR in t.user_attrs]
            raise UserError(f"No trial came to its end; {len(said)} were refused, the last: {said[-1:]}")
        leading = pareto_front(done, self.objectives)
        names = select_trials(leading, self.objectives) if leading else {}
        if not leading:
            self.job.run.warn("No trial meets the constraints: there is nothing to choose from.")
        tested = self.tested([t for t in leading if t.number in names], names) if self.mine(done) else []
        run = self.job.run
        drawn = pictures(self.study, leading, self.objectives, names) if leading else {}
        for title, figure in drawn.items():
            run.figure(title, figure)
        run.table("trials", [self.row(t) for t in trials])
        run.table("front", [self.row(t) | {"aliases": " ".join(names.get(t.number, ()))} for t in leading])
        run.table("chosen", tested)
        run.metrics({"trials": sum(map(is_finished, trials)), "trials_on_front": len(leading)})
        content = {
            "title": f"tune {methods.text(self.space.steps, brief=True)} on {self.job.task.name}",
            "run": run.id,
            "study": self.study.study_name,
            "objectives": list(self.objectives),
            "states": {s.name.lower(): sum(t.state == s for t in trials) for s in TrialState},
            "front": [self.row(t) | {"aliases": " ".join(names.get(t.number, []))} for t in leading],
            "chosen": tested,
            "warnings": run.warnings,
        }
        pictured = {title.replace("-", " "): report.data_uri(figure) for title, figure in drawn.items()}
        page = run.artifact_folder / "report.html"
        page.write_text(report.page("tuning.html", content=content, pictures=pictured))
        run.artifact(page)
        (run.artifact_folder / "tuning.json").write_text(json.dumps(content, indent=1))
        run.artifact(run.artifact_folder / "tuning.json")
        return content

    def mine(self, done: Sequence[FrozenTrial]) -> bool:
        """Whether this worker concludes: the one that ended the last trial, or one that found all done."""
        last = max(done, key=lambda t: (t.datetime_complete, t.number))
        workers = {t.user_attrs[WORKER_ATTR] for t in done}
        me = self.job.run.id
        return last.user_attrs[WORKER_ATTR] == me or me not in workers

    def row(self, trial: FrozenTrial) -> dict[str, Any]:
        values = dict(zip(self.objectives, trial.values or [], strict=False))
        said = {name: trial.user_attrs.get(name, "") for name in (RECIPE_ATTR, RUN_ATTR)}
        return {"trial": trial.number, **values, **trial.params, "state": trial.state.name, **said}

    def tested(self, trials: Sequence[FrozenTrial], names: Mapping[int, list[str]]) -> list[dict[str, Any]]:
        """The chosen trials' figures on the test split, each a child run; their models registered."""
        original = loading.open_model(self.job.settings.baseline, self.job.task)
        threads, folder = self.job.machine.threads, self.job.run.folder / "onnx"
        before = examine(original, self.job.task, folder / "tested.onnx", threads)
        rows = []
        for trial in trials:
            aliases = names[trial.number]
            steps = methods.parse(trial.user_attrs[RECIPE_ATTR])
            tags = self.job.tags("chosen", steps) | {"study": self.study.study_name}
            tags |= {"trial": str(trial.number), "aliases": " ".join(aliases)}
            with self.job.child(f"trial {trial.number} tested: {', '.join(aliases)}", tags) as run:
                model = loading.open_model(f"runs:/{trial.user_attrs[RUN_ATTR]}/model", self.job.task)
                after = examine(model, self.job.task, folder / f"{trial.number}.onnx", threads)
                measured = timed([before, after], self.job.task, threads)
                seconds = tracking.get_run(trial.user_attrs[RUN_ATTR]).metrics["seconds"]
                job = replace(self.job, run=run, stage="compress")
                content = conclusion.conclude(job, steps, model, measured, seconds)
            figures = {name: content["metrics"].get(name) for name in self.objectives}
            version = self.registered(run.id, aliases)
            rows.append({"trial": trial.number, "aliases": " ".join(aliases), **figures, "version": version})
            rows[-1] |= {RUN_ATTR: run.id, "command": content["command"]}
        return rows

    def registered(self, run_id: str, aliases: Sequence[str]) -> str:
        """The version in the registry; a registry that refuses costs no result."""
        try:
            return tracking.register_model(self.study.study_name, run_id, aliases)
        except UserError as error:
            self.job.run.warn(str(error))
            return ""


def table(content: dict[str, Any]) -> str:
    """The front, and the chosen trials on the test split, for a terminal."""
    columns = ["trial", "aliases", *content["objectives"]]
    parts = [("The front, on the validation split:", content["front"])]
    if content["chosen"]:
        parts.append(("Chosen, on the test split:", content["chosen"]))
    return "\n\n".join(f"{title}\n{report.columns(rows, columns)}" for title, rows in parts)
