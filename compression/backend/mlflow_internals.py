"""The parts of MLflow that a project backend needs and that are private or untyped.

MLflow offers backends an abstract class, but neither a public type for a project nor public functions to read one and
to create its run. Other releases of MLflow may move these names: this module is the reason for an upper bound on the
version, and the only one to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.projects import utils
from mlflow.projects._project_spec import Project
from mlflow.projects.submitted_run import LocalSubmittedRun
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.validation import _validate_param

if TYPE_CHECKING:
    import subprocess

    from mlflow.entities import Run

__all__ = [
    "LocalSubmittedRun",
    "Project",
    "create_run",
    "entry_point_command",
    "fetch_project",
    "load_project",
    "local_path",
    "run_environment",
    "submitted_run",
    "validate_param",
]


def fetch_project(uri: str, version: str | None, entry_point: str, params: dict[str, str]) -> str:
    """Return the local folder of the project at `uri`, cloned if that is a git repository.

    Raises MLflow's ExecutionException if there is no such entry point or a required parameter is missing.
    """
    folder: str = utils.fetch_and_validate_project(uri, version, entry_point, params)  # type: ignore[no-untyped-call]
    return folder


def load_project(folder: str) -> Project:
    """Read the MLproject file in `folder`."""
    project: Project = utils.load_project(folder)  # type: ignore[no-untyped-call]
    return project


def entry_point_command(project: Project, entry_point: str, params: dict[str, str], scratch: str) -> str:
    """Return the entry point's shell command; `scratch` is a folder for parameters of type `path` to download to.

    Raises ExecutionException if there is no such entry point or a required parameter is missing.
    """
    command: str = project.get_entry_point(entry_point).compute_command(  # type: ignore[no-untyped-call]
        params, scratch
    )
    return command


def validate_param(name: str, value: str) -> None:
    """Raise MlflowException if MLflow does not accept the parameter's name or value."""
    _validate_param(name, value)  # type: ignore[no-untyped-call]


def create_run(
    uri: str, experiment_id: str, folder: str, version: str | None, entry_point: str, params: dict[str, str]
) -> Run:
    """Create the run of an entry point at the tracking server, with the tags and params that MLflow gives it."""
    run: Run = utils.get_or_create_run(  # type: ignore[no-untyped-call]
        None, uri, experiment_id, folder, version, entry_point, params
    )
    return run


def run_environment(run_id: str, experiment_id: str) -> dict[str, str]:
    """Return the environment variables that make a child process join the run."""
    variables: dict[str, str] = utils.get_run_env_vars(run_id, experiment_id)  # type: ignore[no-untyped-call]
    return variables


def submitted_run(run_id: str, child: subprocess.Popen[Any]) -> LocalSubmittedRun:
    """Wrap the child process of a run as what MLflow expects a backend to return."""
    return LocalSubmittedRun(run_id, child)  # type: ignore[no-untyped-call]


def local_path(uri: str) -> str:
    """Return the path that a `file:` URI or a plain path denotes."""
    path: str = local_file_uri_to_path(uri)  # type: ignore[no-untyped-call]
    return path
