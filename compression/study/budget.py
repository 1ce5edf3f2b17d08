"""A budget of time and memory for reading what a stranger made: a last line behind the limits of each format."""

from __future__ import annotations

import contextlib
import resource
import signal
from typing import TYPE_CHECKING

import psutil

from compression.study.texts import StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS, MEMORY_BYTES = 600, 8 << 30  # an ONNX file has 2 GB at most, and parsing holds it more than once


@contextlib.contextmanager
def limited(seconds: float = SECONDS, memory: int = MEMORY_BYTES) -> Iterator[None]:
    """Give the block so many seconds and bytes beyond those in use. Raises StudyError when it has spent them.

    For the main thread of a process that does nothing else meanwhile.
    """

    def out_of_time(*_: object) -> None:
        raise StudyError("budget_spent", seconds=f"{seconds:g}", megabytes=memory >> 20)

    before = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGALRM, out_of_time)
    try:
        # Data, not address space: torch reserves gigabytes of the latter that it never uses.
        limit = psutil.Process().memory_info().data + memory
        if before[0] == resource.RLIM_INFINITY or limit < before[0]:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except MemoryError as error:
        raise StudyError("budget_spent", seconds=f"{seconds:g}", megabytes=memory >> 20) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, before)
