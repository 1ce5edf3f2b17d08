"""How much of a training its teachers take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch

from compression.training.context import Context

KEPT = 256  # pairs of GPU events kept before they are added up: each is a handle of the driver


class TeacherTime:
    """Adds up the time within `asked()`, without making a GPU wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began, self.seconds = device, time.perf_counter(), 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        if self.device.type != "cuda":
            began = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - began
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self.events.append((begin, end))
        if len(self.events) == KEPT:
            self.add_up()

    def add_up(self) -> None:
        for begin, end in self.events:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) / 1000
        self.events.clear()

    def keep(self, context: Context) -> None:
        """Record `teacher_time_share`, of all the time since this was made."""
        self.add_up()
        context.teacher_times.append((self.seconds, time.perf_counter() - self.began))
        keep_share(context, context.teacher_times[-1:])


@contextlib.contextmanager
def one_share(context: Context) -> Iterator[None]:
    """Several trainings within, each a child run: the share of the run they make up is that of all together."""
    before = len(context.teacher_times)
    yield
    keep_share(context, context.teacher_times[before:])


def keep_share(context: Context, lessons: Sequence[tuple[float, float]]) -> None:
    taught, whole = (sum(seconds) for seconds in zip(*lessons, strict=True))
    context.record.metrics({"teacher_time_share": taught / whole})
