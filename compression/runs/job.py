"""A job: one command at work, with its settings, task, machine and MLflow run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from compression import methods, params, tasks, tracking
from compression.errors import UserError
from compression.runs import loading, machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from compression.methods.base import Method
    from compression.runs.settings import Settings
    from compression.tasks.task import Task


RESUMABLE = ("train", "compress")  # the commands that leave checkpoints


@dataclass(frozen=True)
class Job:
    """What every part of a run needs: settings, task, machine, the MLflow run to log to."""

    settings: Settings
    task: Task
    machine: machine.Machine
    run: tracking.Run
    stage: str  # compress, train, evaluate or tune; step: one of a chain

    @property
    def model_name(self) -> str:
        """The name of the model to compress or train."""
        return self.settings.model or self.task.model

    def child(self, name: str, tags: dict[str, str]) -> AbstractContextManager[tracking.Run]:
        """Open a child run."""
        return self.run.child(name, tags)

    def stage_run(self, name: str) -> AbstractContextManager[tracking.Run]:
        """Open a child run for a stage within a step."""
        return self.child(name, self.tags("part"))

    def tags(self, stage: str, steps: Sequence[Method] = ()) -> dict[str, str]:
        """The tags of a run of this job."""
        limited = {"limited": str(self.settings.limit)} if self.task.is_limited else {}
        return run_tags(self.settings, stage, steps) | limited

    def resolved(self, steps: Sequence[Method]) -> list[Method]:
        """The steps with the task's training defaults filled in; logs them, and warns of fields without effect."""
        filled = [step.resolved(self.task) for step in steps]
        for name, step in zip(methods.labels(filled), filled, strict=True):
            defaults, inactive = params.texts(type(step)().resolved(self.task)), step.inactive()
            # A field at its default was not given by anybody, so nobody is told that it has no effect.
            given = {field: text for field, text in params.texts(step).items() if text != defaults[field]}
            if unused := [f"{field}={given[field]}" for field in given if field in inactive]:
                self.run.warn(f"{name}: {', '.join(unused)} has no effect with the other fields as they are.")
        self.log_fields(filled)
        return filled

    def log_fields(self, steps: Sequence[Method]) -> None:
        """Log the fields of each step that have an effect."""
        for name, step in zip(methods.labels(steps), steps, strict=True):
            prefix, inactive = f"{name}." if len(steps) > 1 else "", step.inactive()
            self.run.params({prefix + field: t for field, t in params.texts(step).items() if field not in inactive})


@contextlib.contextmanager
def started(
    settings: Settings, stage: str, steps: Sequence[Method] = (), task: Task | None = None, folder: Path | None = None
) -> Iterator[Job]:
    """Start a run, load its task and log its parameters; whatever fails within fails the run.

    `task` is one that is loaded already. With a `folder`, the run is tracked nowhere, and what it leaves is there.
    """
    here = machine.prepare(settings)
    task_name = task.name if task else tasks.short_name(settings.task, settings.data)
    name = settings.run_name or " ".join([*map(methods.name_of, steps), task_name])
    known = run_tags(settings, stage, steps)
    opened = contextlib.nullcontext(tracking.LocalRun(folder)) if folder else None
    # The run begins before its data are loaded: what fails there is a failed run, which somebody finds.
    with opened or start_run(here, name, known, settings.experiment) as run:
        settings.observer.started(run, settings.person)
        require_resumable(settings, stage)
        if settings.baseline and not settings.model:
            settings = replace(settings, model=loading.built_name(settings.baseline))
        task = task or load_task(settings)
        methods.check_task(steps, task)
        if task.is_limited:
            count = settings.limit or len(task.train)  # of a task that was loaded before, from Python
            run.tag("limited", str(count))
            run.warn(f"Only {count} examples were used: these are not the figures of {task.name}.")
        texts = params.texts(settings)
        given = {n: texts[n] if isinstance(value, tuple) else value for n, value in params.values(settings).items()}
        run.params(given | {"model": settings.model or task.model} | here.facts())
        if task.description:
            run.tag("data", task.description)
            if here.main:
                tracking.notify(task.description)
        run.dataset(task.name, task.source, task.digest, stage)
        yield Job(settings, task, here, run, stage)
        settings.observer.ended(run, settings.person, known.get("method", stage))


def load_task(settings: Settings) -> Task:
    """Load the task that the settings name."""
    names = (field.name for field in fields(tasks.TaskRequest) if field.name != "name")
    return tasks.load_request(tasks.TaskRequest(settings.task, **{name: getattr(settings, name) for name in names}))


def require_resumable(settings: Settings, stage: str) -> None:
    """Raise UserError if a run is to be resumed by a command that trains nothing itself."""
    if settings.resume and stage not in RESUMABLE:
        raise UserError(f"resume={settings.resume} goes on with a training, and {stage} has none; leave it out.")


def start_run(
    here: machine.Machine, name: str, tags: dict[str, str], experiment: str
) -> AbstractContextManager[tracking.Run]:
    """Start the MLflow run, in the one process that logs for all."""
    if not here.main:
        return tracking.NullRun.start()
    tracking.check_server()
    return tracking.start_run(name=name, tags=tags, experiment=experiment)


def run_tags(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> dict[str, str]:
    """The tags by which a run is found in the UI; empty ones are left out."""
    tags = {
        "participant": settings.person,
        "stage": stage,
        "task": tasks.short_name(settings.task, settings.data),
        "method": "+".join(map(methods.name_of, steps)),
        "family": "+".join(dict.fromkeys(s.family for s in steps)),
        "resumed_from": settings.resume,
    }
    return {name: value for name, value in tags.items() if value}
