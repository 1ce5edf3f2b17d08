"""The MLflow project backend `docker`: `mlflow run . -b docker -e …` in the image of MLproject's `docker_env`.

Differs from plain `mlflow run .` in three ways. It checks engine, image and GPU before it creates a run, which would
stay RUNNING otherwise. It mounts what the run needs of this machine at the same paths: the folder of a SQLite store
(SQLite's own journal is a file beside it), the artifacts of child runs, data. And `docker run` gets environment
variables by name only, so that no password shows up on a command line.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow.utils.git_utils import get_git_commit

from compression.backend.engine import BUILD_HINT, connect
from compression.backend.mlflow_internals import local_path
from compression.backend.process_backend import ProcessBackend
from compression.tracking import notify, server

if TYPE_CHECKING:
    from compression.backend.mlflow_internals import Project
    from compression.backend.process_backend import Launch

PROJECT_FOLDER = "/mlflow/projects/code"  # of the project inside the image
DATA_VARIABLE = "COMPRESSION_DATA"
FORWARDED_PREFIXES = (
    "MLFLOW_",
    "COMPRESSION_",
    "HF_",
    "OPTUNA_",
    "PG",
    "OMP_",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
NOT_FORWARDED = ("COMPRESSION_HOME",)  # the image sets its own, where MLproject mounts this machine's folder
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
SERVICE_VARIABLES = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "COMPRESSION_STUDY_URL")


class DockerBackend(ProcessBackend):
    """Runs an entry point in a container. pyproject.toml registers it as `docker`."""

    name = "docker"

    def check_requirements(self, project: Project, folder: str, options: dict[str, Any]) -> None:
        """Raise UserError if the engine, the image or a requested GPU is missing; warn of an outdated image."""
        engine = connect()
        built, current = engine.image_commit(project.docker_env["image"]), get_git_commit(folder)
        if built and current and built != current:
            notify(
                f"warning: the image has the code of commit {built[:7]}, this folder is at {current[:7]}; {BUILD_HINT}"
            )
        if "gpus" in options:
            engine.require_gpu()

    def child_command(self, launch: Launch) -> tuple[list[str], dict[str, str]]:
        """Return a `docker run` command with volumes and names of variables, and the variables' values."""
        env = dict(launch.environment)
        if env.get(DATA_VARIABLE):
            env[DATA_VARIABLE] = os.path.abspath(env[DATA_VARIABLE])
        volumes = [
            *_declared_volumes(launch), *_store_volumes(launch), *_data_volumes(env), *_parameter_volumes(launch)
        ]  # fmt: skip
        forwarded = [name for name in sorted(env) if name.startswith(FORWARDED_PREFIXES) and name not in NOT_FORWARDED]
        words = ["docker", "run", "--rm", "--init", "--name", _container_name(launch)]
        words += [word for volume in dict.fromkeys(volumes) for word in ("--volume", volume)]
        words += [word for name in forwarded for word in ("--env", name)]
        words += _user_options()
        if "network" not in launch.options and any(_is_loopback(env.get(name, "")) for name in SERVICE_VARIABLES):
            words.append("--network=host")
        image = launch.project.docker_env["image"]
        return [*words, *_docker_options(launch.options), image, "bash", "-c", launch.command], env

    def on_exit(self, launch: Launch) -> None:
        """Kill a container that is still running, because `docker run` was killed before it could stop it."""
        connect().kill_container(_container_name(launch))


def _container_name(launch: Launch) -> str:
    return f"mlflow-{launch.run_id}"


def _declared_volumes(launch: Launch) -> list[str]:
    """The volumes of MLproject, which are written for a shell: plain `mlflow run` passes them to one."""
    return [text.strip('"').replace("$PWD", launch.folder) for text in launch.project.docker_env.get("volumes", [])]


def _store_volumes(launch: Launch) -> list[str]:
    """The folders of a SQLite store and of the artifacts of its runs; empty for a server."""
    uri = server.tracking_uri()
    if not uri.startswith(server.SQLITE):
        return []
    artifacts = Path(local_path(launch.artifact_uri)).parents[1]  # of all runs of the experiment: children's too
    artifacts.mkdir(parents=True, exist_ok=True)
    return [f"{folder}:{folder}" for folder in (Path(uri.removeprefix(server.SQLITE)).parent, artifacts)]


def _data_volumes(env: dict[str, str]) -> list[str]:
    """The folder of COMPRESSION_DATA, read-only, if it is set."""
    folder = env.get(DATA_VARIABLE)
    return [f"{folder}:{folder}:ro"] if folder else []


def _parameter_volumes(launch: Launch) -> list[str]:
    """Files and folders named by parameters, read-only, where the entry point will look for them."""
    texts = [value.removeprefix("@") for value in launch.params.values()]
    texts += [text.rpartition(":")[0] for text in texts if ".py:" in text]  # task=./mine.py:make
    paths = [(Path(launch.folder, text).resolve(), _path_in_container(text)) for text in texts]
    return [f"{source}:{target}:ro" for source, target in paths if source.exists() and target != PROJECT_FOLDER]


def _path_in_container(text: str) -> str:
    return posixpath.normpath(posixpath.join(PROJECT_FOLDER, text))


def _user_options() -> list[str]:
    """Set the user that the entry point runs as, to whom its files will belong.

    The owner of a SQLite store's folder, or the caller. For root with a server it is the image's own user.
    """
    uri = server.tracking_uri()
    if uri.startswith(server.SQLITE):
        owner = Path(uri.removeprefix(server.SQLITE)).parent.stat()
        return ["--env", f"RUN_AS={owner.st_uid}:{owner.st_gid}"]
    return ["--env", f"RUN_AS={os.getuid()}:{os.getgid()}"] if os.getuid() else []


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK_HOSTS


def _docker_options(options: dict[str, Any]) -> list[str]:
    """Write `-A name=value` and `-A name` as options of `docker run`, like mlflow does."""
    words = []
    for name, value in options.items():
        words.append(f"-{name}" if len(name) == 1 else f"--{name}")
        words += [] if value is True else [str(value)]
    return words
