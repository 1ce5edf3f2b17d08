"""The MLflow project backend `host`: `mlflow run . -b host -e …` in the Python that mlflow itself runs in.

For containers and machines without Docker: the entry point runs as a child process, whatever environment the
MLproject file names. MLflow does not wait for a plugin, so the backend waits itself, gives the run the status
that the entry point did not give, and ends every process of the run before it returns. POSIX only.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import click
import psutil
from mlflow.entities import RunStatus
from mlflow.environment_variables import MLFLOW_RUN_ID, MLFLOW_TRACKING_URI
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import LocalSubmittedRun
from mlflow.projects.utils import (
    PROJECT_SYNCHRONOUS,
    fetch_and_validate_project,
    get_or_create_run,
    get_run_env_vars,
    load_project,
)
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from mlflow.utils.validation import _validate_param

from compression.errors import UserError
from compression.tracking import server

_logger = logging.getLogger("mlflow.projects.backend.host")  # below `mlflow`, whose log people see

GRACE_SECONDS = 10.0  # between asking a process to end and ending it; `docker stop` gives as much

Events = SimpleQueue  # signal numbers as they come, and one None when the child ends


class HostBackend(AbstractBackend):
    """Runs an entry point as a child process of this Python. pyproject.toml registers it as `host`."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, str] | None,
        version: str | None,
        backend_config: dict[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> LocalSubmittedRun:
        """Run to the end: when this returns or raises, the run is FINISHED, FAILED or KILLED.

        Raises ExecutionException, which mlflow prints as one sentence, if the project cannot be run (then
        there is no run) or its command fails; SystemExit with 128 + n after SIGINT, SIGTERM or SIGHUP.
        """
        client = server.client(tracking_uri)
        with TemporaryDirectory(prefix="mlflow-host-") as scratch:
            folder, command = _read_project(project_uri, version, entry_point, params or {}, scratch)
            with _one_sentence():  # while there is no run to lose, and Ctrl-C still works at once
                server.check_server()
                client.get_experiment(experiment_id)
            with _stop_requests() as events:
                with _one_sentence():
                    run_id = _create_run(project_uri, experiment_id, folder, version, entry_point, params)
                with _closed_on_error(client, run_id):
                    _name(client, run_id)
                    child = _start(command, folder, _environment(run_id, experiment_id, scratch))
                    asked = _wait(child, run_id, events)
                status, note = _ending(child.returncode, asked)
                heard = _close(client, run_id, status, note)
        if asked or not heard:  # with the server gone, mlflow would go on to tag the run, and fail
            sys.exit(_shell_code(-asked if asked else child.returncode))
        if status != "FINISHED" and not backend_config[PROJECT_SYNCHRONOUS]:  # where mlflow waits, it raises
            raise ExecutionException(f"Run {run_id}: {note}")
        return LocalSubmittedRun(run_id, child)


def _read_project(uri: str, version: str | None, entry_point: str, params: dict[str, str], scratch: str):
    """The project's folder and the shell command of its entry point; raises before any run exists."""
    if "://" not in uri and "@" not in uri and not Path(uri.partition("#")[0]).exists():
        raise ExecutionException(f"There is no project {uri!r}: give a folder that holds an MLproject file.")
    try:
        folder = fetch_and_validate_project(uri, version, entry_point, params)
        command = load_project(folder).get_entry_point(entry_point).compute_command(params, scratch)
        for name, value in params.items():
            _validate_param(name, value)  # mlflow looks when the run exists, and would leave it RUNNING
    except MlflowException as error:
        raise ExecutionException(str(error)) from error
    except Exception as error:  # someone's YAML, git, a network: whatever fails here is the project's
        raise ExecutionException(f"The project {uri!r} cannot be read: {error!r}.") from error
    return folder, command


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What is wrong with the tracking store, as the exception that mlflow prints without a traceback."""
    try:
        yield
    except (UserError, MlflowException) as error:
        raise ExecutionException(str(error)) from error


def _create_run(*project: Any) -> str:
    return get_or_create_run(None, *project).info.run_id


def _environment(run_id: str, experiment_id: str, scratch: str) -> dict[str, str]:
    """The child's environment: the run to log to, the store of the parent, and `python` as this Python."""
    shim = Path(scratch, "bin", "python")  # not every Python has a `python` beside it, nor its own there
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    shim.chmod(0o755)
    path = (str(shim.parent), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    env = os.environ | get_run_env_vars(run_id, experiment_id)
    env["PATH"] = os.pathsep.join(path)
    env[MLFLOW_TRACKING_URI.name] = server.tracking_uri()  # a full path: the child runs in another folder
    return env


@contextmanager
def _stop_requests() -> Iterator[Events]:
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


@contextmanager
def _closed_on_error(client: MlflowClient, run_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _close(client, run_id, "FAILED", str(error))
        raise


def _name(client: MlflowClient, run_id: str) -> None:
    """Tag the run as mlflow does once this backend returns: too late for the child, and never on failure."""
    client.set_tag(run_id, MLFLOW_PROJECT_BACKEND, "host")
    mlflow_run = click.get_current_context(silent=True)  # mlflow tells backends everything but the name
    if mlflow_run and mlflow_run.params.get("run_name"):
        client.set_tag(run_id, MLFLOW_RUN_NAME, mlflow_run.params["run_name"])


def _start(command: str, folder: str, env: dict[str, str]) -> subprocess.Popen:
    """The child, in a session of its own: a Ctrl-C reaches it through us and not past us."""
    _logger.info("=== Running command '%s' in run with ID '%s' ===", command, env[MLFLOW_RUN_ID.name])
    try:
        return subprocess.Popen(["bash", "-c", command], cwd=folder, env=env, start_new_session=True)
    except OSError as error:
        raise ExecutionException(f"The command {command!r} could not be started: {error}.") from error


def _wait(child: subprocess.Popen, run_id: str, events: Events) -> int | None:
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


def _ending(code: int, asked: int | None) -> tuple[str, str]:
    """The status that a child's exit code stands for, and the sentence that says why."""
    if asked:
        return "KILLED", f"The run was stopped by {signal.Signals(asked).name}."
    if code == 0:
        return "FINISHED", ""
    name = _SIGNALS.get(_shell_code(code) - 128)
    if name in ("SIGINT", "SIGTERM"):
        return "KILLED", f"The command was stopped by {name}."
    if name:
        hint = ": perhaps the memory ran out" if name == "SIGKILL" else ""
        return "FAILED", f"The command was ended by {name}{hint}."
    return "FAILED", f"The command failed with exit code {code}."


_SIGNALS = {number.value: number.name for number in signal.Signals}


def _shell_code(code: int) -> int:
    """128 + n for Popen's -n: how a shell, and with it a bash that did not exec, reports signal n."""
    return 128 - code if code < 0 else code


def _close(client: MlflowClient, run_id: str, status: str, note: str) -> bool:
    """Set the status, and add the note, if the run is still RUNNING; whether the server could be asked."""
    try:
        run = client.get_run(run_id)
        if run.info.status != RunStatus.to_string(RunStatus.RUNNING):
            return True
        if note:
            written = run.data.tags.get(MLFLOW_RUN_NOTE)
            client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{written}\n\n{note}" if written else note)
        client.set_terminated(run_id, status)
    except MlflowException as error:
        _logger.error("=== Run %s could not be set to %s: %s ===", run_id, status, error.message)
        return False
    return True
