"""The context that a method is applied in: task, original model, device, and where to log."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch
    from accelerate import Accelerator
    from matplotlib.figure import Figure
    from torch import nn

    from compression.tasks.task import Task


class RunLogger(Protocol):
    """Logs what a method reports. `tracking.Run` is the real one."""

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Log metrics; `step` is the epoch of a curve's point."""

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""

    def warn(self, sentence: str, echo: bool = True) -> None:
        """Show a warning on the run's page and in its report and, with `echo`, on the terminal."""

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a figure as `figures/<name>.png` and show it in the report."""

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep rows as `<name>.csv` and show them in the report."""

    def artifact(self, path: Path) -> None:
        """Keep a file beside the model."""


@dataclass(frozen=True)
class ChildLogger:
    """Logs to a child run and to its parent; in the parent, figures and tables bear the child's name in front."""

    name: str
    own: RunLogger
    parent: RunLogger

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Log metrics to both."""
        self.own.metrics(values, step)
        self.parent.metrics(values, step)

    def tag(self, name: str, value: str) -> None:
        """Set a tag of both."""
        self.own.tag(name, value)
        self.parent.tag(name, value)

    def warn(self, sentence: str, echo: bool = True) -> None:
        """Warn in both, on the terminal once."""
        self.own.warn(sentence, echo=False)
        self.parent.warn(sentence, echo)

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a figure in both."""
        self.own.figure(name, figure)
        self.parent.figure(f"{self.name}-{name}", figure)

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep a table in both."""
        self.own.table(name, rows)
        self.parent.table(f"{self.name}-{name}", rows)

    def artifact(self, path: Path) -> None:
        """Keep a file in both."""
        self.own.artifact(path)
        self.parent.artifact(path)


@dataclass
class EpochCounter:
    """Epochs logged so far, over all trainings of a run: the x axis of its curves."""

    value: int = 0

    def next(self) -> int:
        """Count an epoch that just ended; its number, from 1."""
        self.value += 1
        return self.value


@dataclass(frozen=True)
class Context:
    """What a method is applied with. Nobody changes it: a step of a chain gets its own, see `for_step`.

    `original` is the frozen model before the first step: the default teacher, never changed, in eval mode.
    `load` gives the trained model behind a name, `runs:/…`, `models:/…` or a folder; `build` gives the same except
    that a plain name is a model yet to train (a hub name: with its pretrained weights). `child` opens a child run.
    `conditions` are what the run and the method were given, by name: no training is resumed under others.
    """

    task: Task
    original: nn.Module
    accelerator: Accelerator
    record: RunLogger
    seed: int
    folder: Path  # scratch of this run: checkpoints live here
    load: Callable[[str], nn.Module]
    build: Callable[[str], nn.Module]
    child: Callable[[str], AbstractContextManager[RunLogger]]
    step_name: str = "train"  # names the checkpoints of the step
    model_changed: bool = False  # an earlier step of the chain changed the model
    resume: Path | None = None  # the scratch folder of the run being resumed
    conditions: Mapping[str, Any] = field(default_factory=dict)
    epochs: EpochCounter = field(default_factory=EpochCounter)
    teacher_times: list[tuple[float, float]] = field(default_factory=list)  # (teachers, in all), s, of each training

    @property
    def device(self) -> torch.device:
        """The device to train on."""
        device: torch.device = self.accelerator.device
        return device

    def for_step(self, number: int, name: str) -> Context:
        """The context of step `number` (from 1) of a chain, the method `name`."""
        return replace(self, step_name=f"{number}-{name}", model_changed=number > 1, teacher_times=[])

    def under(self, conditions: Mapping[str, Any]) -> Context:
        """The context with these conditions as well."""
        return replace(self, conditions={**self.conditions, **conditions})

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[tuple[Context, RunLogger]]:
        """Open a child run for a stage of the work: the context that logs to both runs, and the child's logger."""
        with self.child(name) as own:
            yield replace(self, record=ChildLogger(name, own, self.record)), own
