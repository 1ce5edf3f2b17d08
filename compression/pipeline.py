"""One run from its settings to its report: baseline, steps, measurement before and after."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compression import baseline, command, machine, methods, models, params, results, tasks, tracking
from compression.context import Context
from compression.errors import UserError
from compression.measure import measure
from compression.methods.base import Method
from compression.settings import Settings
from compression.tasks.task import Task
from compression.training import Recipe, complete


@dataclass(frozen=True)
class Job:
    """A run under way: what was asked, the loaded task, the machine, the MLflow run."""

    settings: Settings
    task: Task
    machine: machine.Machine
    run: tracking.Run
    stage: str  # compress, train or evaluate

    @property
    def model_name(self) -> str:
        return self.settings.model or self.task.model

    def context(self, original: nn.Module) -> Context:
        return Context(
            task=self.task,
            original=original,
            accelerator=self.machine.accelerator,
            record=self.run,
            seed=self.settings.seed,
            folder=self.run.folder,
            load=lambda spec: baseline.opened(self.address(spec), self.task),
            build=lambda spec: baseline.opened(spec, self.task),
            resume=resumed(self.settings),
        )

    def address(self, spec: str) -> str:
        """Where the trained model lies that `spec` names; what is no name of the lab is such a place itself."""
        return self.trained(spec) if spec in models.MODELS else spec

    def trained(self, name: str) -> str:
        """The address of the newest finished `train` run of the task, this model and this data, made now if need be."""
        found = self.machine.shared(lambda: tracking.find_baseline(self.task.name, name, self.task.digest))
        return f"runs:/{found}/model" if found else self.train_child(name)

    def with_baseline(self) -> Job:
        """This job with the address of its baseline in its settings, so that its command repeats it exactly."""
        given = self.settings.baseline
        found = self.address(given) if given else self.trained(self.model_name)
        self.run.tag("baseline", found)
        return replace(self, settings=replace(self.settings, baseline=found))

    def train_child(self, name: str) -> str:
        """Train the model `name` as a child run with the task's own recipe; the address of what it made."""
        settings = replace(self.settings, model=name, baseline="", run_name="", resume="")
        step = methods.method("finetune")()
        with self.child(f"train {name} {self.task.name}", tags(settings, "train", [step])) as run:
            train_in(replace(self, settings=settings, run=run, stage="train"), step)
        return f"runs:/{self.machine.shared(lambda: run.id)}/model"

    def child(self, name: str, tags: dict[str, str]) -> AbstractContextManager[tracking.Run]:
        return tracking.child(self.run, name, tags) if self.machine.main else tracking.Silent.start()


def compress(settings: Settings, steps: Sequence[Method]) -> dict[str, Any]:
    """Apply `steps` to the baseline and measure both; what the run keeps as comparison.json."""
    methods.check_order(steps)
    with started(settings, "compress", steps) as job:
        steps = resolved(job, steps)
        job = job.with_baseline()
        original = baseline.opened(job.settings.baseline, job.task)
        original.requires_grad_(False).to(job.machine.device)
        began = time.perf_counter()
        model = apply(steps, original, job.context(original))
        seconds = time.perf_counter() - began
        if not job.machine.main:
            return {}
        return conclude(job, steps, [original, model], seconds)


def train(settings: Settings, step: Method) -> dict[str, Any]:
    """Train the model of `settings` from its start: a baseline, measured, for later runs to begin from."""
    with started(settings, "train", [step]) as job:
        return train_in(job, step)


def evaluate(settings: Settings) -> dict[str, Any]:
    """Measure a trained model as it is."""
    with started(settings, "evaluate") as job:
        job = job.with_baseline()
        return conclude(job, [], [baseline.opened(job.settings.baseline, job.task)], 0.0)


def train_in(job: Job, step: Method) -> dict[str, Any]:
    """Train within a run that has begun."""
    [step] = resolved(job, [step])
    began = time.perf_counter()
    model = baseline.opened(job.model_name, job.task)
    model = step.apply(model, job.context(model))
    seconds = time.perf_counter() - began
    job.run.tag("model", job.model_name)
    job.run.tag("data_digest", job.task.digest)
    return conclude(job, [step], [model], seconds) if job.machine.main else {}


def apply(steps: Sequence[Method], original: nn.Module, context: Context) -> nn.Module:
    """The steps in turn, on a copy of `original`."""
    model = copy.deepcopy(original).requires_grad_(True)
    for number, step in enumerate(steps, 1):
        at = f"{number}-{methods.name_of(step)}"
        context.step_name, context.changed = at, number > 1
        model = step.apply(model, context).eval()
    return model


def resolved(job: Job, steps: Sequence[Method]) -> list[Method]:
    """The steps with the task's own values filled in, all of them logged."""
    filled = [complete(s, job.task) if isinstance(s, Recipe) else s for s in steps]
    for step in filled:
        prefix = f"{methods.name_of(step)}." if len(filled) > 1 else ""
        job.run.params({prefix + name: value for name, value in params.values(step).items()})
    return filled


def conclude(job: Job, steps: Sequence[Method], compared: list[nn.Module], seconds: float) -> dict[str, Any]:
    """Measure, say what is alarming, and leave everything in the run."""
    measured = measure([m.cpu() for m in compared], job.task, job.run.folder / "onnx", job.machine.threads)
    found = results.summarize(job.task, measured, seconds)
    for sentence in results.alarms(job.task, measured):
        job.run.warn(sentence)
    about = {
        "title": " ".join([methods.text(steps, brief=True) or job.stage, "on", job.task.name]),
        "run": job.run.id,
        "task": job.task.name,
        "labels": job.task.labels,
        "model": job.model_name,
        "steps": methods.text(steps),
        "participant": job.settings.person,
        "command": command.line(job.settings, job.stage, steps),
        "project_command": command.project_line(job.settings, job.stage, steps),
        "machine": job.machine.facts(),
    }
    return results.keep(job.run, job.task, compared[-1], measured, found, about)


@contextlib.contextmanager
def started(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> Iterator[Job]:
    """A run with its task loaded and its parameters logged; its failure is the run's failure."""
    here = machine.prepare(settings)
    name = settings.run_name or " ".join([*map(methods.name_of, steps), settings.task])
    with begun(here, name, tags(settings, stage, steps), settings.experiment) as run:
        if settings.baseline and not settings.model:
            settings = replace(settings, model=baseline.name_of(settings.baseline))
        task = tasks.load(settings.task, data=settings.data, limit=settings.limit, model=settings.model)
        if task.limited:
            run.tag("limited", str(settings.limit))
            run.warn(f"Only {settings.limit} examples were used: these are not the figures of {task.name}.")
        run.params(params.values(settings) | {"model": settings.model or task.model} | here.facts())
        run.dataset(task.name, task.source, task.digest, stage)
        yield Job(settings, task, here, run, stage)


def begun(
    here: machine.Machine, name: str, tags: dict[str, str], experiment: str
) -> AbstractContextManager[tracking.Run]:
    """The MLflow run, in the one process that speaks for all."""
    if not here.main:
        return tracking.Silent.start()
    tracking.check_server()
    return tracking.start(name=name, tags=tags, experiment=experiment)


def tags(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> dict[str, str]:
    """What the run is known by in the UI."""
    said = {
        "participant": settings.person,
        "stage": stage,
        "task": settings.task,
        "method": "+".join(map(methods.name_of, steps)),
        "family": "+".join(dict.fromkeys(s.family for s in steps)),
        "resumed_from": settings.resume,
    }
    return {name: value for name, value in said.items() if value}


def resumed(settings: Settings) -> Path | None:
    """The folder with the checkpoints of the run to go on from; UserError if it is not on this machine."""
    if not settings.resume:
        return None
    folder = tracking.folder_of(settings.resume)
    if not any(folder.glob("*.pt")):
        raise UserError(
            f"There is no checkpoint of the run {settings.resume} in {folder}; resume on the machine it ran on, "
            "with the same COMPRESSION_HOME."
        )
    return folder
