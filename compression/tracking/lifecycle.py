"""Starting a run, or joining the one that `mlflow run` created, and ending it with the right status."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.default_context import DefaultRunContext
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from compression.errors import UserError
from compression.tracking import server
from compression.tracking.delivery import (
    RUN_KEY_TAG,
    MlflowSender,
    NewRun,
    RunMetadata,
    clean_up,
    is_permanent_error,
    sync,
)
from compression.tracking.journal import Journal, JournalLockedError, count_undelivered, write_error
from compression.tracking.outbox import Outbox, UnavailableError
from compression.tracking.run import Run, notify, now_ms, run_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient

END_TIMEOUT = 5.0  # seconds that the end of a run waits for a server that does not answer
DEFAULT_EXPERIMENT = "0"  # MLflow's own default, where `mlflow run` without --experiment-name puts its runs


@contextmanager
def start_run(name: str = "", tags: Mapping[str, str] | None = None, experiment: str = "") -> Iterator[Run]:
    """Join the run that `mlflow run` created for this command, or else create one in `experiment`.

    Without `experiment`, MLflow's own rule holds: MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, else "Default".
    Leaving the block ends the run: as FINISHED; as KILLED after Ctrl-C or SIGTERM; as FAILED after any other
    exception, with its message in the note. Meanwhile a thread delivers what earlier runs could not.
    Raises UserError if the run cannot be started.
    """
    tags = dict(tags or {})
    run_id = os.environ.pop("MLFLOW_RUN_ID", "")  # popped: a second run of this process must not join it too
    with server.checked_client("start a run") as client:
        if run_id:
            found = client.get_run(run_id)
            server.check_artifact_access(client, found.info.experiment_id)
            folder = _create_folder(run_id, found.info.experiment_id)
        else:
            experiment_id = _get_or_create_experiment(client, experiment)
            server.check_artifact_access(client, experiment_id)
            folder = _create_run(experiment_id, name, tags, can_wait=False)
    logged_tags, logged_params = (found.data.tags, found.data.params) if run_id else (tags, {})
    syncing = threading.Thread(target=_sync_earlier_runs, name="sync", daemon=True)
    syncing.start()
    with _open_run(folder, logged_tags, logged_params) as run:
        if run_id:
            for tag, value in (_commit_tag() | tags).items():
                if tag != MLFLOW_GIT_COMMIT or tag not in logged_tags:  # MLflow knows which commit it checked out
                    run.tag(tag, value)
        yield run
    syncing.join(END_TIMEOUT)


def fail_joined_run(sentence: str) -> None:
    """Fail the run that `mlflow run` created for this command, with `sentence` as its note, if none joined it yet."""
    if "MLFLOW_RUN_ID" in os.environ:
        with contextlib.suppress(UserError), start_run():  # suppressed: the caller prints the sentence itself
            raise UserError(sentence)


def _sync_earlier_runs() -> None:
    try:
        sync()
    except UserError as error:
        notify(str(error))  # a full disk, on which the run itself will fail too


@contextmanager
def start_child_run(parent: Run, name: str = "", tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Create a child run of `parent` in its experiment; it ends as described at `start_run`.

    While the server does not answer it starts all the same, with an id that only this machine knows, and is created
    at the server later. Raises UserError if another process writes the run, or the disk is full.
    """
    experiment_id = MlflowSender(parent.folder).metadata["experiment"]
    folder = _create_run(experiment_id, name, {**(tags or {}), MLFLOW_PARENT_RUN_ID: parent.id}, can_wait=True)
    with _open_run(folder, dict(tags or {}), {}) as run:
        yield run


def _create_run(experiment_id: str, name: str, tags: dict[str, str], can_wait: bool) -> Path:
    """Create a run and its folder, which bears the run's id.

    If the server does not answer and the run `can_wait`, the folder bears a random key until the run is created.
    """
    key = uuid.uuid4().hex
    context: dict[str, str] = DefaultRunContext().tags()  # type: ignore[no-untyped-call]
    all_tags = context | _commit_tag() | tags | {RUN_KEY_TAG: key}
    new: NewRun = {"experiment": experiment_id, "name": name or None, "tags": all_tags, "start": now_ms()}
    sender = MlflowSender(run_folder(key))
    sender.save_metadata({**_metadata("", experiment_id), "make": new})
    try:
        return sender.folder.rename(run_folder(sender.id))
    except (MlflowException, requests.RequestException, UnavailableError) as error:
        if can_wait and not is_permanent_error(error):
            return sender.folder
        shutil.rmtree(sender.folder)
        raise


def _create_folder(run_id: str, experiment_id: str) -> Path:
    """Create the folder of a run that exists at the server."""
    sender = MlflowSender(run_folder(run_id))
    sender.save_metadata(_metadata(run_id, experiment_id))
    return sender.folder


def _metadata(run_id: str, experiment_id: str) -> RunMetadata:
    return {
        "uri": server.redact_uri(server.tracking_uri()),
        "id": run_id,
        "experiment": experiment_id,
        "began": psutil.Process().create_time(),
    }


def _get_or_create_experiment(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment to use. Raises UserError if it was deleted."""
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        _create_experiment(client, name)
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise UserError(f"The experiment {name!r} was deleted; restore it in MLflow, or take another name.")
    return found.experiment_id


def _create_experiment(client: MlflowClient, name: str) -> None:
    try:
        client.create_experiment(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run created it at the same moment
            raise


@functools.cache
def _commit_tag() -> dict[str, str]:
    """The git commit of this source code as a tag; empty if the package is installed rather than checked out."""
    source = Path(__file__)
    git = ["git", "-C", str(source.parent)]
    try:
        # Fails where the package is installed inside the checkout of another project, whose commit it is not.
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], check=True, capture_output=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {MLFLOW_GIT_COMMIT: commit.stdout.strip()}


@contextmanager
def _open_run(folder: Path, tags: Mapping[str, str], logged_params: Mapping[str, str]) -> Iterator[Run]:
    """Open the run's journal, deliver it from a thread, and end the run when the block is left."""
    sender = MlflowSender(folder)
    try:
        journal = Journal(folder)
    except JournalLockedError:
        raise UserError(f"Another process is writing the run {folder.name}; wait until it ends.") from None
    journal.reserve_space()

    def on_unavailable(reason: str) -> None:
        uri = sender.metadata["uri"]
        notify(f"{uri} does not accept entries ({reason}); the run continues and keeps them in {folder}.")

    outbox = Outbox(journal, sender, lambda: clean_up(sender, journal), on_unavailable)
    run = Run(sender.metadata["id"] or folder.name, folder, outbox, tags, logged_params, start_child_run)
    try:
        with _full_disk_as_user_error(folder):
            yield run
    except BaseException as error:
        _end(run, outbox, sender, *_end_status(error))
        raise
    _end(run, outbox, sender, "FINISHED", "")


@contextmanager
def _full_disk_as_user_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise write_error(folder, error) from error
        raise


def _end_status(error: BaseException) -> tuple[str, str]:
    """Return the run's status after an exception, and the sentence for its note."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "Stopped by Ctrl-C."
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED", ""
        by_signal = isinstance(error.code, int) and error.code > 128  # 128 + the signal's number
        return ("KILLED", "Stopped by a signal.") if by_signal else ("FAILED", f"Exit code {error.code}.")
    return "FAILED", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _end(run: Run, outbox: Outbox, sender: MlflowSender, status: str, failure: str) -> None:
    try:
        run.end(status, failure, sender.metadata["began"])
    finally:
        if not outbox.close(END_TIMEOUT):
            left, uri = count_undelivered(run.folder), sender.metadata["uri"]
            notify(
                f"{left} entries of run {run.id} could not be sent to {uri} ({outbox.last_error}); "
                f"they are kept in {run.folder}, and `compression sync` sends them later."
            )
