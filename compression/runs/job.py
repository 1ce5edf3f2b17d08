"""A run under way: what was asked, the task, the machine, the MLflow run; where its models come from, how it ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression import methods, models, params, tasks, tracking
from compression.deploy.measure import Measurement, examine, timed
from compression.errors import UserError
from compression.methods.base import Method
from compression.runs import baseline, command, machine, results
from compression.runs.settings import Settings
from compression.tasks.task import Task
from compression.training.context import Context
from compression.training.loop import Recipe, complete


@dataclass(frozen=True)
class Job:
    """What every stage of a run needs to know."""

    settings: Settings
    task: Task
    machine: machine.Machine
    run: tracking.Run
    stage: str  # compress, train, evaluate, tune; step is one of a chain

    @property
    def model_name(self) -> str:
        return self.settings.model or self.task.model

    def context(self, original: nn.Module) -> Context:
        """What the methods of this run get to know; `original` is the model that they begin from."""
        return Context(
            task=self.task,
            original=original,
            accelerator=self.machine.accelerator,
            record=self.run,
            seed=self.settings.seed,
            folder=self.run.folder,
            load=lambda spec: baseline.opened(self.address(spec), self.task),
            build=lambda spec: baseline.opened(spec, self.task),
            child=self.part,
            resume=resumed(self.settings),
        )

    def address(self, spec: str) -> str:
        """Where the trained model lies that `spec` names; what is no name of the lab is such a place itself."""
        return self.trained(spec) if spec in models.MODELS else spec

    def trained(self, name: str) -> str:
        """The address of the model `name` as a `train` run of the task and this data left it, made now if need be."""
        return self.found(name) or self.train_child(name)

    def found(self, name: str) -> str:
        """The same of the newest run that is there; empty if there is none."""
        id = self.machine.shared(lambda: tracking.find_baseline(self.task.name, name, self.task.digest))
        return f"runs:/{id}/model" if id else ""

    def foresee(self, step: Method) -> None:
        """Let the first step refuse what it cannot do before its baseline is trained, which may take hours."""
        given = self.settings.baseline
        name = given or self.model_name
        if (given and given not in models.MODELS) or self.found(name):
            return
        with torch.random.fork_rng(devices=[]):  # the training begins as if nobody had looked
            untrained = baseline.opened(name, self.task)
            context = self.context(untrained)
            step.check(untrained, replace(context, load=context.build))

    def train_child(self, name: str) -> str:
        """Train the model `name` as a child run with the task's own recipe; the address of what it made."""
        step = methods.method("finetune")()
        settings = replace(self.settings, model=name, baseline="", run_name="", resume="")
        job = replace(self, settings=settings, stage="train")
        with self.child(f"train {name} {self.task.name}", job.tags("train", [step])) as run:
            replace(job, run=run).train(step)
        return f"runs:/{self.machine.shared(lambda: run.id)}/model"

    def train(self, step: Method) -> dict[str, Any]:
        """Train the model of the settings from its start, and measure it."""
        [step] = self.resolved([step])
        began = time.perf_counter()
        model = baseline.opened(self.model_name, self.task)
        model = step.apply(model, self.context(model))
        seconds = time.perf_counter() - began
        self.run.tag("model", self.model_name)
        self.run.tag("data_digest", self.task.digest)
        return self.measure([step], model, seconds)

    def with_baseline(self) -> Job:
        """This job with the address of its baseline in its settings, so that its command repeats it exactly."""
        given = self.settings.baseline
        found = self.address(given) if given else self.trained(self.model_name)
        self.run.tag("baseline", found)
        return replace(self, settings=replace(self.settings, baseline=found))

    def child(self, name: str, tags: dict[str, str]) -> AbstractContextManager[tracking.Run]:
        """A run below this one."""
        return tracking.child(self.run, name, tags) if self.machine.main else tracking.Silent.start()

    def part(self, name: str) -> AbstractContextManager[tracking.Run]:
        """A run below this one for a part of what it does."""
        return self.child(name, self.tags("part"))

    def tags(self, stage: str, steps: Sequence[Method] = ()) -> dict[str, str]:
        limited = {"limited": str(self.settings.limit)} if self.task.limited else {}
        return tags(self.settings, stage, steps) | limited

    def resolved(self, steps: Sequence[Method]) -> list[Method]:
        """The steps with the task's own values filled in, all of them logged."""
        filled = [complete(s, self.task) if isinstance(s, Recipe) else s for s in steps]
        for name, step in zip(methods.labels(filled), filled, strict=True):
            prefix = f"{name}." if len(filled) > 1 else ""
            self.run.params({prefix + field: value for field, value in params.values(step).items()})
        return filled

    def measure(self, steps: Sequence[Method], model: nn.Module, seconds: float) -> dict[str, Any]:
        """Measure a model that there is nothing to compare with, and conclude."""
        if not self.machine.main:
            return {}
        found = examine(model.cpu(), self.task, self.run.folder / "onnx" / "0.onnx", self.machine.threads)
        return self.conclude(steps, model, timed([found], self.task, self.machine.threads), seconds)

    def conclude(
        self, steps: Sequence[Method], model: nn.Module, measured: list[Measurement], seconds: float
    ) -> dict[str, Any]:
        """Say what is alarming, and leave everything in the run; the content of comparison.json."""
        found = results.summarize(self.task, measured, seconds)
        for sentence in results.alarms(self.task, model, measured):
            self.run.warn(sentence, aloud=self.stage != "step")  # the whole chain's end counts
        return results.keep(self.run, self.task, model.cpu(), measured, found, self.about(steps))

    def about(self, steps: Sequence[Method]) -> dict[str, Any]:
        """What is said beside the figures: who, what, and how to do it again."""
        stage = "compress" if self.stage == "step" else self.stage
        return {
            "title": " ".join([methods.text(steps, brief=True) or stage, "on", self.task.name]),
            "run": self.run.id,
            "task": self.task.name,
            "labels": self.task.labels,
            "model": self.model_name,
            "steps": methods.text(steps),
            "stairs": methods.labels(steps),
            "participant": self.settings.person,
            "command": command.line(self.settings, stage, steps),
            "project_command": command.project_line(self.settings, stage, steps),
            "machine": self.machine.facts(),
        }


@contextlib.contextmanager
def started(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> Iterator[Job]:
    """A run with its task loaded and its parameters logged; its failure is the run's failure."""
    here = machine.prepare(settings)
    name = settings.run_name or " ".join([*map(methods.name_of, steps), settings.task])
    known = tags(settings, stage, steps)
    with begun(here, name, known, settings.experiment) as run:
        settings.observer.started(run, settings.person)
        if settings.baseline and not settings.model:
            settings = replace(settings, model=baseline.name_of(settings.baseline))
        task = tasks.load(settings.task, data=settings.data, limit=settings.limit, model=settings.model)
        methods.check_task(steps, task)
        if task.limited:
            run.tag("limited", str(settings.limit))
            run.warn(f"Only {settings.limit} examples were used: these are not the figures of {task.name}.")
        run.params(params.values(settings) | {"model": settings.model or task.model} | here.facts())
        run.dataset(task.name, task.source, task.digest, stage)
        yield Job(settings, task, here, run, stage)
        settings.observer.ended(run, settings.person, known.get("method", stage))


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
