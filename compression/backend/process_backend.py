"""The base of the MLflow project backends: an entry point as a child process, whose run is ended whatever happens.

MLflow does not wait for the child of a plugin. So the backend waits itself, sets the run's status if the entry point
did not, and ends every process of the run before it returns. POSIX only.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import click
from mlflow.entities import RunStatus
from mlflow.environment_variables import MLFLOW_TRACKING_URI
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.utils import PROJECT_DOCKER_ARGS, PROJECT_SYNCHRONOUS
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from compression.backend import mlflow_internals
from compression.backend.child_process import StopEvents, queue_stop_signals, wait_for_child
from compression.errors import UserError
from compression.tracking import home_tag, launch_lock, server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.tracking import MlflowClient

    from compression.backend.mlflow_internals import LocalSubmittedRun, Project

_logger = logging.getLogger("mlflow.projects.backend.process")  # below `mlflow`, whose log users see


@dataclass(frozen=True)
class Launch:
    """An entry point about to be started, in a run that exists."""

    run_id: str
    experiment_id: str
    artifact_uri: str  # of the run
    project: Project
    folder: str  # of the project
    command: str  # of the entry point, for a shell
    params: dict[str, str]
    scratch: str  # a folder that lasts as long as the child
    options: dict[str, Any]  # `-A` of `mlflow run`

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process, with the run to join, and the tracking URI with the full path of a file."""
        run = mlflow_internals.run_environment(self.run_id, self.experiment_id)
        uri = {str(MLFLOW_TRACKING_URI.name): server.tracking_uri()}
        return os.environ | run | uri


class ProcessBackend(AbstractBackend):
    """Runs an entry point as one child process; subclasses say which."""

    name: ClassVar[str]

    def check_requirements(self, project: Project, folder: str, options: dict[str, Any]) -> None:
        """Raise UserError if something is missing without which every run would fail. No run exists yet."""

    def child_command(self, launch: Launch) -> tuple[list[str], dict[str, str]]:
        """Return the child's command line and its environment."""
        raise NotImplementedError

    def on_exit(self, launch: Launch) -> None:
        """Clean up after the child has ended or was killed."""

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

        Raises ExecutionException, which mlflow prints as one sentence, if the project cannot be run (then no run
        exists) or its command fails; SystemExit with 128 + n after SIGINT, SIGTERM or SIGHUP.
        """
        options, params = backend_config.get(PROJECT_DOCKER_ARGS) or {}, params or {}
        with TemporaryDirectory(prefix="mlflow-run-") as scratch:
            folder, project, command = _read_project(project_uri, version, entry_point, params, scratch)
            with _as_execution_exception():  # before signals are queued: Ctrl-C still works at once
                client = server.create_client(tracking_uri)
                server.check_server()
                client.get_experiment(experiment_id)
                self.check_requirements(project, folder, options)
            with queue_stop_signals() as events:
                with _as_execution_exception():
                    info = mlflow_internals.create_run(
                        project_uri, experiment_id, folder, version, entry_point, params
                    ).info
                run_id, artifacts = str(info.run_id), str(info.artifact_uri)
                launch = Launch(run_id, experiment_id, artifacts, project, folder, command, params, scratch, options)
                with (
                    _failed_on_error(client, run_id),
                    _as_execution_exception(),
                    launch_lock(run_id, _lab_folder(folder)) as lock,
                ):
                    child, stop_signal = self._run_child(client, launch, events, lock)
                status, note = _end_status(child.returncode, stop_signal)
                server_answers = _end_run(client, run_id, status, note)
        if stop_signal or not server_answers:  # without the server, mlflow would go on to tag the run, and fail
            sys.exit(_shell_code(-stop_signal if stop_signal else child.returncode))
        if status != "FINISHED" and not backend_config[PROJECT_SYNCHRONOUS]:  # if synchronous, mlflow raises
            raise ExecutionException(f"Run {run_id}: {note}")
        return mlflow_internals.submitted_run(run_id, child)

    def _run_child(
        self, client: MlflowClient, launch: Launch, events: StopEvents, lock: int
    ) -> tuple[subprocess.Popen[bytes], int | None]:
        """Run the child to its end; return it with the signal that stopped it, if any. It inherits the file `lock`."""
        _tag_run(client, launch, self.name)
        child = _start(*self.child_command(launch), launch, lock)
        stop_signal = wait_for_child(child, launch.run_id, events)
        self.on_exit(launch)
        return child, stop_signal


def _read_project(
    uri: str, version: str | None, entry_point: str, params: dict[str, str], scratch: str
) -> tuple[str, Project, str]:
    """Return the project's folder, the project, and the shell command of its entry point.

    Raises ExecutionException if the project cannot be read or does not take the parameters. No run exists yet.
    """
    if "://" not in uri and "@" not in uri and not Path(uri.partition("#")[0]).exists():
        raise ExecutionException(f"There is no project {uri!r}: give a folder that holds an MLproject file.")
    try:
        folder = mlflow_internals.fetch_project(uri, version, entry_point, params)
        project = mlflow_internals.load_project(folder)
        command = mlflow_internals.entry_point_command(project, entry_point, params, scratch)
        for name, value in params.items():
            mlflow_internals.validate_param(name, value)  # mlflow checks after creating the run: it stays RUNNING
    except MlflowException as error:
        raise ExecutionException(str(error)) from error
    except Exception as error:  # YAML, git, network: whatever fails here is a fault of the project
        raise ExecutionException(f"The project {uri!r} cannot be read: {error!r}.") from error
    return folder, project, command


@contextmanager
def _as_execution_exception() -> Iterator[None]:
    """Turn errors of the tracking store into the exception that mlflow prints without a traceback."""
    try:
        yield
    except (UserError, MlflowException) as error:
        raise ExecutionException(str(error)) from error


@contextmanager
def _failed_on_error(client: MlflowClient, run_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _end_run(client, run_id, "FAILED", str(error))
        raise


def _lab_folder(project: str) -> Path:
    """The folder that the child will track its run from: COMPRESSION_HOME, or `.compression` in the project."""
    return Path(project, os.environ.get("COMPRESSION_HOME") or ".compression")


def _tag_run(client: MlflowClient, launch: Launch, backend: str) -> None:
    """Tag the run with the backend, the run's name, and the folder that it is tracked from.

    mlflow does the first two when this backend returns: too late for the child, and not at all after a failure.
    """
    run_id = launch.run_id
    for tag, value in (home_tag(_lab_folder(launch.folder)) | {MLFLOW_PROJECT_BACKEND: backend}).items():
        client.set_tag(run_id, tag, value)
    context = click.get_current_context(silent=True)  # mlflow passes backends everything but the run's name
    if context and context.params.get("run_name"):
        client.set_tag(run_id, MLFLOW_RUN_NAME, context.params["run_name"])


def _start(words: list[str], env: dict[str, str], launch: Launch, lock: int) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own: Ctrl-C reaches this process only, which then ends the child."""
    _logger.info("=== Running command '%s' in run with ID '%s' ===", launch.command, launch.run_id)
    try:
        return subprocess.Popen(words, cwd=launch.folder, env=env, start_new_session=True, pass_fds=[lock])
    except OSError as error:
        raise ExecutionException(f"The command {launch.command!r} could not be started: {error}.") from error


def _end_status(code: int, stop_signal: int | None) -> tuple[str, str]:
    """Return the run's status and the sentence for its note, by the child's exit code and the signal to stop it."""
    if stop_signal:
        return "KILLED", f"The run was stopped by {signal.Signals(stop_signal).name}."
    if code == 0:
        return "FINISHED", ""
    name = _SIGNAL_NAMES.get(_shell_code(code) - 128)
    if name in ("SIGINT", "SIGTERM"):
        return "KILLED", f"The command was stopped by {name}."
    if name:
        hint = ": perhaps the memory ran out" if name == "SIGKILL" else ""
        return "FAILED", f"The command was ended by {name}{hint}."
    return "FAILED", f"The command failed with exit code {code}."


_SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}


def _shell_code(code: int) -> int:
    """Translate Popen's -n for a child that signal n ended to the 128 + n with which a shell reports it."""
    return 128 - code if code < 0 else code


def _end_run(client: MlflowClient, run_id: str, status: str, note: str) -> bool:
    """Set the status and add the note if the run is still RUNNING; return whether the server answered."""
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
