"""What the MLflow project backends share: an entry point as a child process, and its run closed whatever happens.

MLflow does not wait for a plugin, so the backend waits itself, gives the run the status that the entry point did not
give, and ends every process of the run before it returns. POSIX only.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import click
from mlflow.entities import RunStatus
from mlflow.environment_variables import MLFLOW_TRACKING_URI
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects._project_spec import Project
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import LocalSubmittedRun
from mlflow.projects.utils import (
    PROJECT_DOCKER_ARGS,
    PROJECT_SYNCHRONOUS,
    fetch_and_validate_project,
    get_or_create_run,
    get_run_env_vars,
    load_project,
)
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from mlflow.utils.validation import _validate_param

from compression.backend.child import stop_requests, wait
from compression.errors import UserError
from compression.tracking import server

_logger = logging.getLogger("mlflow.projects.backend.process")  # below `mlflow`, whose log people see


@dataclass(frozen=True)
class Launch:
    """An entry point about to be started, in a run that exists."""

    run_id: str
    experiment_id: str
    artifacts: str  # where the run's files go
    project: Project
    folder: str  # where it lies
    command: str  # of the entry point, for a shell
    params: dict[str, str]
    scratch: str  # a folder that lasts as long as the child
    options: dict[str, Any]  # `-A` of `mlflow run`

    @property
    def variables(self) -> dict[str, str]:
        """This process's environment, the run to log to, and the caller's store by its full path."""
        run = get_run_env_vars(self.run_id, self.experiment_id)
        return os.environ | run | {MLFLOW_TRACKING_URI.name: server.tracking_uri()}


class ProcessBackend(AbstractBackend):
    """Runs an entry point as one child process; a subclass says which."""

    name: ClassVar[str]

    def check(self, project: Project, folder: str, options: dict[str, Any]) -> None:
        """Raise UserError for what would make every run fail: there is no run yet."""

    def process(self, launch: Launch) -> tuple[list[str], dict[str, str]]:
        """The child's words and its environment."""
        raise NotImplementedError

    def ended(self, launch: Launch) -> None:
        """Called once the child has ended or was ended."""

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
        client, options = server.create_client(tracking_uri), backend_config.get(PROJECT_DOCKER_ARGS) or {}
        params = params or {}
        with TemporaryDirectory(prefix="mlflow-run-") as scratch:
            folder, project, command = _read_project(project_uri, version, entry_point, params, scratch)
            with _one_sentence():  # while there is no run to lose, and Ctrl-C still works at once
                server.check_server()
                client.get_experiment(experiment_id)
                self.check(project, folder, options)
            with stop_requests() as events:
                with _one_sentence():
                    made = get_or_create_run(None, project_uri, experiment_id, folder, version, entry_point, params)
                run_id, files = made.info.run_id, made.info.artifact_uri
                launch = Launch(run_id, experiment_id, files, project, folder, command, params, scratch, options)
                with _closed_on_error(client, run_id):
                    _name(client, run_id, self.name)
                    child = _start(*self.process(launch), launch)
                    asked = wait(child, run_id, events)
                    self.ended(launch)
                status, note = _ending(child.returncode, asked)
                heard = _close(client, run_id, status, note)
        if asked or not heard:  # with the server gone, mlflow would go on to tag the run, and fail
            sys.exit(_shell_code(-asked if asked else child.returncode))
        if status != "FINISHED" and not backend_config[PROJECT_SYNCHRONOUS]:  # where mlflow waits, it raises
            raise ExecutionException(f"Run {run_id}: {note}")
        return LocalSubmittedRun(run_id, child)


def _read_project(uri: str, version: str | None, entry_point: str, params: dict[str, str], scratch: str):
    """The project's folder, the project, the shell command of its entry point; raises before any run exists."""
    if "://" not in uri and "@" not in uri and not Path(uri.partition("#")[0]).exists():
        raise ExecutionException(f"There is no project {uri!r}: give a folder that holds an MLproject file.")
    try:
        folder = fetch_and_validate_project(uri, version, entry_point, params)
        project = load_project(folder)
        command = project.get_entry_point(entry_point).compute_command(params, scratch)
        for name, value in params.items():
            _validate_param(name, value)  # mlflow looks when the run exists, and would leave it RUNNING
    except MlflowException as error:
        raise ExecutionException(str(error)) from error
    except Exception as error:  # someone's YAML, git, a network: whatever fails here is the project's
        raise ExecutionException(f"The project {uri!r} cannot be read: {error!r}.") from error
    return folder, project, command


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What is wrong with the tracking store, as the exception that mlflow prints without a traceback."""
    try:
        yield
    except (UserError, MlflowException) as error:
        raise ExecutionException(str(error)) from error


@contextmanager
def _closed_on_error(client: MlflowClient, run_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _close(client, run_id, "FAILED", str(error))
        raise


def _name(client: MlflowClient, run_id: str, backend: str) -> None:
    """Tag the run as mlflow does once this backend returns: too late for the child, and never on failure."""
    client.set_tag(run_id, MLFLOW_PROJECT_BACKEND, backend)
    mlflow_run = click.get_current_context(silent=True)  # mlflow tells backends everything but the name
    if mlflow_run and mlflow_run.params.get("run_name"):
        client.set_tag(run_id, MLFLOW_RUN_NAME, mlflow_run.params["run_name"])


def _start(words: list[str], env: dict[str, str], launch: Launch) -> subprocess.Popen:
    """The child, in a session of its own: a Ctrl-C reaches it through us and not past us."""
    _logger.info("=== Running command '%s' in run with ID '%s' ===", launch.command, launch.run_id)
    try:
        return subprocess.Popen(words, cwd=launch.folder, env=env, start_new_session=True)
    except OSError as error:
        raise ExecutionException(f"The command {launch.command!r} could not be started: {error}.") from error


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
