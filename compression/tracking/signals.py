"""Holding back signals that would interrupt the last words of a run."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held(seconds: float) -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back in the block's first `seconds`; the last of them comes after the block.

    Yields a function that ends the holding before that. Only for what Python handles: a signal that is ignored, or ends
    the process outright, stays so. Has no effect outside of the main thread, which gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    held: list[int] = []
    deadline = time.monotonic() + seconds
    previous = {number: handler for number in STOP_SIGNALS if callable(handler := signal.getsignal(number))}
    to_restore = dict(previous)

    def hold(number: int, frame: FrameType | None) -> None:
        if time.monotonic() < deadline:
            held.append(number)
        else:
            previous[signal.Signals(number)](number, frame)

    def release() -> None:
        while to_restore:
            signal.signal(*to_restore.popitem())
        if held:
            last = held[-1]
            held.clear()
            os.kill(os.getpid(), last)

    for number in previous:
        signal.signal(number, hold)
    try:
        yield release
    finally:
        release()
