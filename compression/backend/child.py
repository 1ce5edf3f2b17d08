"""A child process and all that it starts: waiting for it, and ending it with everything that belongs to its run."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

import psutil
from mlflow.environment_variables import MLFLOW_RUN_ID

_logger = logging.getLogger("mlflow.projects.backend.child")  # below `mlflow`, whose log people see

GRACE_SECONDS = 10.0  # between asking a process to end and ending it; `docker stop` gives as much

Events = SimpleQueue  # signal numbers as they come, and one None when the child ends


@contextmanager
def stop_requests() -> Iterator[Events]:
    """Queue the signals that ask this process to stop, instead of obeying them with a child still alive."""
    events: Events = SimpleQueue()  # its put() may be called in a signal handler
    previous = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                previous[number] = signal.signal(number, lambda number, _frame: events.put(number))
    try:
        yield events
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait(child: subprocess.Popen, run_id: str, events: Events) -> int | None:
    """Wait for the child or a signal, end what is left of the run, and return the signal's number."""

    def announce_end() -> None:
        child.wait()
        events.put(None)

    threading.Thread(target=announce_end, daemon=True).start()
    asked = events.get()
    _end(child.pid, run_id, signal.SIGINT if asked == signal.SIGINT else signal.SIGTERM, events)
    child.wait(GRACE_SECONDS)
    return asked


def _end(session: int, run_id: str, number: int, events: Events) -> None:
    """Send the signal to every process of the run and, to those still there after a while, SIGKILL.

    To all at once, as a terminal does with Ctrl-C, because bash would not pass it on. A second Ctrl-C ends
    the patience.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    _send(number, _processes(session, run_id))
    while (left := _processes(session, run_id)) and time.monotonic() < deadline:
        with suppress(Empty):
            deadline = 0.0 if events.get(timeout=0.1) == signal.SIGINT else deadline
    if left:
        _logger.warning("=== Killing %d processes that did not end when asked ===", len(left))
    deadline = time.monotonic() + GRACE_SECONDS  # one that hangs in a driver does not even take SIGKILL
    while (left := _processes(session, run_id)) and time.monotonic() < deadline:
        _send(signal.SIGKILL, left)
        time.sleep(0.05)


def _processes(session: int, run_id: str) -> list[psutil.Process]:
    """The live processes of the run: those in the child's session or with the run's id in their environment.

    By the latter is found what moved to a session of its own and lost its parent.
    """
    return [process for process in psutil.process_iter() if _belongs(process, session, run_id)]


def _belongs(process: psutil.Process, session: int, run_id: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # and stays one, in a container that reaps none
            return False
        return os.getsid(process.pid) == session or process.environ().get(MLFLOW_RUN_ID.name) == run_id
    except (OSError, psutil.Error):  # gone in the meantime, or another user's
        return False


def _send(number: int, processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
