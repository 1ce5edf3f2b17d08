"""Starting a run, or joining the one that `mlflow run` made, and ending it with the right status."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.default_context import DefaultRunContext
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from compression.errors import UserError
from compression.tracking import server
from compression.tracking.delivery import KEY, Delivery, refused_for_good, sync, tidy
from compression.tracking.journal import Busy, Journal, cannot_write, waiting
from compression.tracking.outbox import Outbox, Undelivered
from compression.tracking.run import Run, folder_of, milliseconds, say

PATIENCE = 5.0  # seconds that the end of a run waits for a server that is gone
DEFAULT_EXPERIMENT = "0"  # MLflow's own default, where `mlflow run` without --experiment-name puts its runs


@contextmanager
def start(name: str = "", tags: Mapping[str, str] | None = None, experiment: str = "") -> Iterator[Run]:
    """The run that `mlflow run` made for this command, or else a new one in `experiment`.

    An empty experiment means MLflow's own rule: MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, else "Default".
    Leaving the block ends the run: FINISHED; KILLED after Ctrl-C or SIGTERM; FAILED after any other
    exception, with its sentence in the note. What earlier runs could not deliver is delivered meanwhile.
    Raises a UserError if the run cannot be started.
    """
    tags = dict(tags or {})
    joined = os.environ.pop("MLFLOW_RUN_ID", "")  # popped: a run started later must not join it too
    with server.asking("start a run") as client:
        if joined:
            found = client.get_run(joined)
            server.require_files(client, found.info.experiment_id)
            folder = _joined(joined, found.info.experiment_id)
        else:
            into = _experiment(client, experiment)
            server.require_files(client, into)
            folder = _new(into, name, tags, may_wait=False)
    seen, known = (found.data.tags, found.data.params) if joined else (tags, {})
    leftovers = threading.Thread(target=_deliver_leftovers, name="sync", daemon=True)
    leftovers.start()
    with _opened(folder, seen, known) as run:
        if joined:
            for tag, value in (_commit() | tags).items():
                if tag != MLFLOW_GIT_COMMIT or tag not in seen:  # MLflow knows better which commit it fetched
                    run.tag(tag, value)
        yield run
    leftovers.join(PATIENCE)


def refuse(sentence: str) -> None:
    """Fail the run that `mlflow run` made for this command, if nobody joined it yet, with `sentence` in its note."""
    if "MLFLOW_RUN_ID" in os.environ:
        with contextlib.suppress(UserError), start():  # suppressed: the caller is saying the sentence already
            raise UserError(sentence)


def _deliver_leftovers() -> None:
    try:
        sync()
    except UserError as error:
        say(str(error))  # a full disk: the run itself will meet it too


@contextmanager
def child(parent: Run, name: str = "", tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """A run below `parent`, in its experiment; it ends as `start` says.

    While the server is gone it starts all the same, with an id that only this machine knows, and is made at
    the server later.
    """
    experiment = Delivery(parent.folder).facts["experiment"]
    folder = _new(experiment, name, {**(tags or {}), MLFLOW_PARENT_RUN_ID: parent.id}, may_wait=True)
    with _opened(folder, dict(tags or {}), {}) as run:
        yield run


def _new(experiment: str, name: str, tags: dict[str, str], may_wait: bool) -> Path:
    """The folder of a new run, named by its id; by a key, if it `may_wait` for a server that is gone."""
    key = uuid.uuid4().hex
    all_tags = DefaultRunContext().tags() | _commit() | tags | {KEY: key}
    make = {"experiment": experiment, "name": name or None, "tags": all_tags, "start": milliseconds()}
    delivery = Delivery(folder_of(key))
    delivery.keep(_facts("", experiment) | {"make": make})
    try:
        return delivery.folder.rename(folder_of(delivery.id))
    except (MlflowException, requests.RequestException, Undelivered) as error:
        if may_wait and not refused_for_good(error):
            return delivery.folder
        shutil.rmtree(delivery.folder)
        raise


def _joined(run_id: str, experiment: str) -> Path:
    delivery = Delivery(folder_of(run_id))
    delivery.keep(_facts(run_id, experiment))
    return delivery.folder


def _facts(run_id: str, experiment: str) -> dict[str, Any]:
    """What `Delivery` needs to know."""
    began = psutil.Process().create_time()  # of the command, in seconds since the epoch
    return {
        "uri": server.public(server.tracking_uri()),
        "id": run_id,
        "experiment": experiment,
        "began": began,
    }


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment to use, made if need be."""
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        _make_experiment(client, name)
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise UserError(f"The experiment {name!r} was deleted; restore it in MLflow, or take another name.")
    return found.experiment_id


def _make_experiment(client: MlflowClient, name: str) -> None:
    try:
        client.create_experiment(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # then somebody else began at the same moment
            raise


@functools.cache
def _commit() -> dict[str, str]:
    """The commit of this source code, as a tag; nothing if it is installed, and not a checkout."""
    source = Path(__file__)
    git = ["git", "-C", str(source.parent)]
    try:
        # A package installed inside somebody else's checkout must not go by their commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], check=True, capture_output=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {MLFLOW_GIT_COMMIT: commit.stdout.strip()}


@contextmanager
def _opened(folder: Path, seen: Mapping[str, str], known: Mapping[str, str]) -> Iterator[Run]:
    delivery = Delivery(folder)
    try:
        journal = Journal(folder)
    except Busy:
        raise UserError(f"Another process is writing the run {folder.name}; wait until it ends.") from None
    journal.reserve()

    def lost(reason: str) -> None:
        say(f"{delivery.facts['uri']} takes nothing ({reason}); the run goes on and keeps it all in {folder}.")

    outbox = Outbox(journal, delivery, lambda: tidy(delivery, journal), lost)
    run = Run(delivery.facts["id"] or folder.name, folder, outbox, seen, known)
    try:
        with _full_disk_named(folder):
            yield run
    except BaseException as error:
        _end(run, outbox, delivery, *_outcome(error))
        raise
    _end(run, outbox, delivery, "FINISHED", "")


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cannot_write(folder, error) from error
        raise


def _outcome(error: BaseException) -> tuple[str, str]:
    """The status and the sentence that an exception leaves."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "Stopped by Ctrl-C."
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED", ""
        stopped = isinstance(error.code, int) and error.code > 128  # 128 + the signal
        return ("KILLED", "Stopped by a signal.") if stopped else ("FAILED", f"Exit code {error.code}.")
    return "FAILED", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _end(run: Run, outbox: Outbox, delivery: Delivery, status: str, failure: str) -> None:
    try:
        run.end(status, failure, delivery.facts["began"])
    finally:
        if not outbox.close(PATIENCE):
            say(
                f"{waiting(run.folder)} records of run {run.id} could not be sent to {delivery.facts['uri']} "
                f"({outbox.trouble}); they are kept in {run.folder}, and `compression sync` sends them later."
            )
