"""What a method gets to know about the run it is part of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from matplotlib.figure import Figure
    from torch import nn

    from compression.tasks.task import Task


class Record(Protocol):
    """Where a method leaves what people will look at. `tracking.Run` is the real one."""

    def metrics(self, values: dict[str, float], step: int | None = None) -> None: ...
    def tag(self, name: str, value: str) -> None: ...
    def warn(self, sentence: str, aloud: bool = True) -> None:
        """Say it on the run's page and in the report and, `aloud`, on the terminal."""

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a picture as `figures/<name>.png` and show it in the report."""

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep rows as `<name>.csv` and show them in the report."""

    def artifact(self, path: Path) -> None:
        """Keep a file beside the model."""


@dataclass(frozen=True)
class Part:
    """The Record of a part of a run: it keeps its own, and the whole run gets to know it too."""

    name: str  # goes before the names of pictures and tables in the whole
    own: Record
    whole: Record

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.own.metrics(values, step)
        self.whole.metrics(values, step)

    def tag(self, name: str, value: str) -> None:
        self.own.tag(name, value)
        self.whole.tag(name, value)

    def warn(self, sentence: str, aloud: bool = True) -> None:
        self.own.warn(sentence, aloud=False)
        self.whole.warn(sentence, aloud)

    def figure(self, name: str, figure: Figure) -> None:
        self.own.figure(name, figure)
        self.whole.figure(f"{self.name}-{name}", figure)

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.own.table(name, rows)
        self.whole.table(f"{self.name}-{name}", rows)

    def artifact(self, path: Path) -> None:
        self.own.artifact(path)
        self.whole.artifact(path)


@dataclass
class Context:
    """The run a method is applied in.

    `original` is the frozen model before the first step: the default teacher, never changed, in eval mode.
    `load` gives the trained model behind a name, `runs:/…`, `models:/…` or a folder; `build` gives the same except
    that a plain name is a model yet to train (a hub name: with its pretrained weights).
    """

    task: Task
    original: nn.Module
    accelerator: Accelerator
    record: Record
    seed: int
    folder: Path  # scratch of this run: checkpoints live here
    load: Callable[[str], nn.Module]
    build: Callable[[str], nn.Module]
    child: Callable[[str], AbstractContextManager[Record]]  # a child run of the run, by its name
    step_name: str = "train"  # the step being applied: names its checkpoint
    changed: bool = False  # an earlier step of the chain changed the model
    resume: Path | None = None  # the scratch folder of the run being resumed
    epochs: int = 0  # epochs recorded so far, over all trainings of the run: the x axis of its curves
    lessons: list[tuple[float, float]] = field(default_factory=list)  # seconds of teachers and in all, a training each

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Record]:
        """A part of the work as a child run: what `record` is told within the block, the child is told as well."""
        with self.child(name) as own:
            whole, self.record = self.record, Part(name, own, self.record)
            try:
                yield own
            finally:
                self.record = whole

    def next_epoch(self) -> int:
        """The number under which the epoch that just ended is recorded, from 1."""
        self.epochs += 1
        return self.epochs
