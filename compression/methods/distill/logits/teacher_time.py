"""The share of a training's time that is spent in its teachers."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from compression.training.context import Context

MOST_EVENTS = 256  # pairs of GPU events held before they are added up: each is a handle of the driver


class TeacherTimer:
    """Adds up the seconds within `measure()`; on a GPU with events, so that it need not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started, self.seconds = device, time.perf_counter(), 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Count the time of the block as the teachers'."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - started
            return
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        yield
        end.record()
        self.events.append((begin, end))
        if len(self.events) == MOST_EVENTS:
            self.add_up_events()

    def add_up_events(self) -> None:
        """Wait for the events held so far and add their time."""
        for begin, end in self.events:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) / 1000  # it is in milliseconds
        self.events.clear()

    def log_share(self, context: Context) -> None:
        """Record `teacher_time_share`, of all the time since the timer was made."""
        # Work that is queued on a GPU is not done yet: its last events are waited for before either number is read.
        self.add_up_events()
        context.teacher_times.append((self.seconds, time.perf_counter() - self.started))
        log_share_of(context, context.teacher_times[-1:])


@contextlib.contextmanager
def log_total_share(context: Context) -> Iterator[None]:
    """Record `teacher_time_share` of all trainings within the block together; each has its own in its child run."""
    before = len(context.teacher_times)
    yield
    log_share_of(context, context.teacher_times[before:])


def log_share_of(context: Context, times: Sequence[tuple[float, float]]) -> None:
    """Record the share of some trainings, given as (seconds in teachers, seconds in all) of each."""
    in_teachers, in_all = (sum(seconds) for seconds in zip(*times, strict=True))
    context.record.metrics({"teacher_time_share": in_teachers / in_all})
