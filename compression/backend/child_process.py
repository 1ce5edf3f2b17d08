"""Waiting for the child process of a run, and ending it together with every process that it started."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

import psutil
from mlflow.environment_variables import MLFLOW_RUN_ID

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

_logger = logging.getLogger("mlflow.projects.backend.child")  # below `mlflow`, whose log users see

GRACE_SECONDS = 10.0  # between asking a process to end and killing it; `docker stop` waits as long

StopEvents: TypeAlias = "SimpleQueue[int | None]"  # the number of each signal received, and None when the child ends


@contextmanager
def queue_stop_signals() -> Iterator[StopEvents]:
    """Queue SIGINT, SIGTERM and SIGHUP inside the block, so that this process outlives its child."""
    events: StopEvents = SimpleQueue()  # SimpleQueue.put is safe to call in a signal handler
    previous = {}
    if threading.current_thread() is threading.main_thread():  # Python allows signal handlers nowhere else
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has SIGHUP ignored
                previous[number] = signal.signal(number, lambda number, _frame: events.put(number))
    try:
        yield events
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait_for_child(child: subprocess.Popen[bytes], run_id: str, events: StopEvents) -> int | None:
    """Wait until the child ends or a signal comes, then end all processes of the run.

    Returns the signal's number, or None if the child ended by itself.
    """

    def announce_end() -> None:
        child.wait()
        events.put(None)

    threading.Thread(target=announce_end, daemon=True).start()
    stop_signal = events.get()
    _terminate(child.pid, run_id, signal.SIGINT if stop_signal == signal.SIGINT else signal.SIGTERM, events)
    child.wait(GRACE_SECONDS)
    return stop_signal


def _terminate(session: int, run_id: str, number: int, events: StopEvents) -> None:
    """Send a signal to every process of the run, and SIGKILL to those still alive after GRACE_SECONDS.

    All get the signal at once, as with Ctrl-C in a terminal, because bash does not pass it on. A second Ctrl-C kills
    at once.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    _send_signal(number, _run_processes(session, run_id))
    while (alive := _run_processes(session, run_id)) and time.monotonic() < deadline:
        with suppress(Empty):
            deadline = 0.0 if events.get(timeout=0.1) == signal.SIGINT else deadline
    if alive:
        _logger.warning("=== Killing %d processes that did not end when asked ===", len(alive))
    deadline = time.monotonic() + GRACE_SECONDS  # a process that hangs in a driver survives even SIGKILL
    while (alive := _run_processes(session, run_id)) and time.monotonic() < deadline:
        _send_signal(signal.SIGKILL, alive)
        time.sleep(0.05)


def _run_processes(session: int, run_id: str) -> list[psutil.Process]:
    """The live processes of the run: those in the child's session, or with the run's id in their environment.

    The id finds processes that opened a session of their own and lost their parent.
    """
    return [process for process in psutil.process_iter() if _belongs_to_run(process, session, run_id)]


def _belongs_to_run(process: psutil.Process, session: int, run_id: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # stays one in a container whose init reaps none
            return False
        return os.getsid(process.pid) == session or process.environ().get(MLFLOW_RUN_ID.name) == run_id
    except (OSError, psutil.Error):  # ended in the meantime, or of another user
        return False


def _send_signal(number: int, processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
