"""The MLflow project backend `docker`: `mlflow run . -b docker -e …` in the image of MLproject's `docker_env`.

What plain `mlflow run .` does too, with three differences. Engine, image and GPU are looked at before a run is made
that would stay RUNNING without them. What the run needs of this machine is mounted where it lies here: the folder of
a SQLite store (its journal lies beside the file), the results of child runs, data. And names of variables alone stand
on the command line, so that no password does.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.projects._project_spec import Project
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.git_utils import get_git_commit

from compression.backend.engine import BUILD, engine
from compression.backend.process import Launch, ProcessBackend
from compression.tracking import notify, server

CODE = "/mlflow/projects/code"  # where the image has the project
DATA = "COMPRESSION_DATA"
HANDED_ON = ("MLFLOW_", "COMPRESSION_", "HF_", "OPTUNA_", "PG", "OMP_", "http_proxy", "https_proxy", "no_proxy")
NOT_HANDED_ON = ("COMPRESSION_HOME",)  # the image's own, where MLproject mounts this machine's
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SERVICES = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "COMPRESSION_STUDY_URL")


class DockerBackend(ProcessBackend):
    """Runs an entry point in a container. pyproject.toml registers it as `docker`."""

    name = "docker"

    def check(self, project: Project, folder: str, options: dict[str, Any]) -> None:
        """Engine, image and, if one is asked for, GPU; UserError for what is missing."""
        found = engine()
        built, here = found.commit_of(project.docker_env["image"]), get_git_commit(folder)
        if built and here and built != here:
            notify(f"warning: the image has the code of commit {built[:7]}, this folder is at {here[:7]}; {BUILD}")
        if "gpus" in options:
            found.require_gpu()

    def process(self, launch: Launch) -> tuple[list[str], dict[str, str]]:
        """`docker run` with what the entry point needs of this machine; of variables, the names alone."""
        env = dict(launch.variables)
        mounts = [*_declared(launch), *_store(launch), *_data(env), *_given(launch)]
        handed_on = [name for name in sorted(env) if name.startswith(HANDED_ON) and name not in NOT_HANDED_ON]
        words = ["docker", "run", "--rm", "--init", "--name", _container(launch)]
        words += [word for mount in dict.fromkeys(mounts) for word in ("--volume", mount)]
        words += [word for name in handed_on for word in ("--env", name)]
        words += _as_owner()
        if "network" not in launch.options and any(_on_loopback(env.get(name, "")) for name in SERVICES):
            words.append("--network=host")
        image = launch.project.docker_env["image"]
        return [*words, *_arguments(launch.options), image, "bash", "-c", launch.command], env

    def ended(self, launch: Launch) -> None:
        engine().stop(_container(launch))  # where `docker run` was ended before it could


def _container(launch: Launch) -> str:
    return f"mlflow-{launch.run_id}"


def _declared(launch: Launch) -> list[str]:
    """The volumes of MLproject, which are written for the shell that plain `mlflow run` gives them to."""
    return [text.strip('"').replace("$PWD", launch.folder) for text in launch.project.docker_env.get("volumes", [])]


def _store(launch: Launch) -> list[str]:
    """The folders of a SQLite store and of its artifacts; nothing for a server."""
    uri = server.tracking_uri()
    if not uri.startswith(server.SQLITE):
        return []
    runs = Path(local_file_uri_to_path(launch.artifacts)).parents[1]  # those of child runs too
    runs.mkdir(parents=True, exist_ok=True)
    return [f"{folder}:{folder}" for folder in (Path(uri.removeprefix(server.SQLITE)).parent, runs)]


def _data(env: dict[str, str]) -> list[str]:
    """The root of the data, to be read only; in `env` its full path."""
    if not env.get(DATA):
        return []
    env[DATA] = os.path.abspath(env[DATA])
    return [f"{env[DATA]}:{env[DATA]}:ro"]


def _given(launch: Launch) -> list[str]:
    """Files and folders among the parameters, where the entry point will look for them, to be read only."""
    texts = [value.removeprefix("@") for value in launch.params.values()]
    found = [(Path(launch.folder, text).resolve(), posixpath.normpath(posixpath.join(CODE, text))) for text in texts]
    return [f"{here}:{there}:ro" for here, there in found if here.exists() and there != CODE]


def _as_owner() -> list[str]:
    """Who the entry point runs as, so that the files are theirs: the owner of a SQLite store's folder, or the caller.

    For root without a store here it is the image's own user.
    """
    uri = server.tracking_uri()
    if uri.startswith(server.SQLITE):
        owner = Path(uri.removeprefix(server.SQLITE)).parent.stat()
        return ["--env", f"RUN_AS={owner.st_uid}:{owner.st_gid}"]
    return ["--env", f"RUN_AS={os.getuid()}:{os.getgid()}"] if os.getuid() else []


def _on_loopback(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def _arguments(options: dict[str, Any]) -> list[str]:
    """`-A name=value` and `-A name` as mlflow hands them to `docker run`."""
    words = []
    for name, value in options.items():
        words.append(f"-{name}" if len(name) == 1 else f"--{name}")
        words += [] if value is True else [str(value)]
    return words
