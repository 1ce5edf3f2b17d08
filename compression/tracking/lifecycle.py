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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.default_context import DefaultRunContext
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from compression.errors import UserError
from compression.tracking import server
from compression.tracking.delivery import MlflowSender, clean_up, is_permanent_error, sync
from compression.tracking.journal import Journal, JournalLockedError, count_undelivered, write_error
from compression.tracking.lookup import RUN_KEY_TAG
from compression.tracking.lost import home_tag
from compression.tracking.outbox import Health, Outbox, UnavailableError
from compression.tracking.run import NAME_LENGTH, Run, clean_name, clean_text, notify, now_ms, run_folder
from compression.tracking.signals import signals_held

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient

    from compression.tracking.metadata import NewRun, RunMetadata

START_ATTEMPTS = 3  # to create a run: one answer in a hundred is lost on a bad line
END_TIMEOUT = 5.0  # seconds that the end of a run waits for a server that does not answer
CHILD_TIMEOUT = 3.0  # seconds that what trains waits for a server, where a child run begins and where it ends
DEFAULT_EXPERIMENT = "0"  # MLflow's own default, where `mlflow run` without --experiment-name puts its runs


@dataclass
class Family:
    """A run and all below it: they share a server, and the process ends with the one at the top."""

    top: Run | None = None
    health: Health = field(default_factory=Health)
    ended: list[tuple[Run, Outbox]] = field(default_factory=list)  # child runs that were still being delivered


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
            sender, journal = _join_run(run_id, found.info.experiment_id)
        else:
            experiment_id = _get_or_create_experiment(client, clean_text(experiment))
            server.check_artifact_access(client, experiment_id)
            sender, journal = _prepare_run(experiment_id, name, tags)
            _create_run(sender, journal)
    logged_tags, logged_params = (found.data.tags, found.data.params) if run_id else (tags, {})
    syncing = threading.Thread(target=_sync_earlier_runs, name="sync", daemon=True)
    syncing.start()
    family = Family()
    with _open_run(sender, journal, logged_tags, logged_params, family) as run:
        if run_id:
            for tag, value in (_commit_tag() | home_tag() | tags).items():
                if tag != MLFLOW_GIT_COMMIT or tag not in logged_tags:  # MLflow knows which commit it checked out
                    run.tag(tag, value)
        yield run
    if family.health.answers:
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
def _start_child_run(family: Family, parent: Run, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Create a child run of `parent` in its experiment; it ends as described at `start_run`.

    If the server does not answer in time it starts all the same, with an id that only this machine knows, and is
    created at the server later. Raises UserError if the disk is full.
    """
    experiment_id = MlflowSender(parent.folder).metadata["experiment"]
    sender, journal = _prepare_run(experiment_id, name, {**tags, MLFLOW_PARENT_RUN_ID: parent.id})
    with _open_run(sender, journal, tags, {}, family) as run:
        yield run


def _prepare_run(experiment_id: str, name: str, tags: Mapping[str, str]) -> tuple[MlflowSender, Journal]:
    """Make the folder of a run that is to be created, with its journal: a process killed later leaves a trace.

    The folder bears a random key until the run has been created.
    """
    key = uuid.uuid4().hex
    context: dict[str, str] = DefaultRunContext().tags()  # type: ignore[no-untyped-call]
    all_tags = context | _commit_tag() | dict(tags) | home_tag() | {RUN_KEY_TAG: key}
    new: NewRun = {
        "experiment": experiment_id,
        "name": clean_text(name)[:NAME_LENGTH] or None,
        "tags": {clean_name(tag): clean_text(value) for tag, value in all_tags.items()},
        "start": now_ms(),
    }
    journal = Journal(run_folder(key))
    sender = MlflowSender(journal.folder, journal)
    sender.save_metadata({**_metadata("", experiment_id), "make": new})
    return sender, journal


def _create_run(sender: MlflowSender, journal: Journal) -> None:
    """Create the run at the server. Raises what its last answer was, and leaves nothing then."""
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            sender.id  # noqa: B018 - creates it, unless an answer was lost and the run is there
            return
        except (MlflowException, requests.RequestException, UnavailableError) as error:
            if attempt == START_ATTEMPTS or is_permanent_error(error) or not server.answers(sender.uri):
                journal.delete()
                shutil.rmtree(sender.folder)
                raise


def _join_run(run_id: str, experiment_id: str) -> tuple[MlflowSender, Journal]:
    """Make the folder of a run that exists at the server. Raises UserError if another process writes it."""
    try:
        journal = Journal(run_folder(run_id))
    except JournalLockedError:
        raise UserError(f"Another process is writing the run {run_id}; wait until it ends.") from None
    sender = MlflowSender(journal.folder)
    sender.save_metadata(_metadata(run_id, experiment_id))
    return sender, journal


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
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, encoding="utf-8"
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {MLFLOW_GIT_COMMIT: commit.stdout.strip()}


@contextmanager
def _open_run(
    sender: MlflowSender, journal: Journal, tags: Mapping[str, str], logged_params: Mapping[str, str], family: Family
) -> Iterator[Run]:
    """Deliver the run's journal from a thread, and end the run when the block is left.

    A run that is not at the server yet is created by that thread; the start waits for it for CHILD_TIMEOUT, and not at
    all where the server did not answer last.
    """

    def on_unavailable(reason: str) -> None:
        uri = sender.metadata["uri"]
        notify(f"{uri} does not accept entries ({reason}); the run continues and keeps them in {sender.folder}.")

    with signals_held(2 * CHILD_TIMEOUT) as release:
        journal.reserve_space()
        outbox = Outbox(
            journal,
            sender,
            lambda: clean_up(sender, journal),
            on_unavailable,
            sender.create,
            sender.seconds_to_send,
            family.health,
        )
        if family.health.answers and not outbox.prepared.wait(CHILD_TIMEOUT):
            family.health.answers = False
        open_child = functools.partial(_start_child_run, family)
        run = Run(sender.settle(), sender.folder, outbox, tags, logged_params, open_child)
        family.top = family.top or run
        try:
            release()  # whatever stops the command from here on ends the run
            with _full_disk_as_user_error(sender.folder):
                yield run
        except BaseException as error:
            _end(run, outbox, family, sender.metadata["began"], *_end_status(error))
            raise
        _end(run, outbox, family, sender.metadata["began"], "FINISHED", "")


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


def _end(run: Run, outbox: Outbox, family: Family, began: float, status: str, failure: str) -> None:
    """Write the end of a run, and wait for its delivery; the run at the top waits for those below it, too."""
    with signals_held(END_TIMEOUT):  # a second Ctrl-C comes as fast as the first
        try:
            run.end(status, failure, began)
        finally:
            if family.top is not run:
                patience = CHILD_TIMEOUT if family.health.answers else 0.0
                if not outbox.close(patience, at_most=CHILD_TIMEOUT):
                    family.ended.append((run, outbox))
            else:
                _deliver_rest([(run, outbox), *family.ended])


def _deliver_rest(ended: list[tuple[Run, Outbox]]) -> None:
    """Wait until runs have been delivered; say what could not be, once the server accepts nothing for END_TIMEOUT."""
    patience, left = END_TIMEOUT, []
    for run, outbox in ended:
        if not outbox.close(patience):
            patience = 0.0
            left.append((run, outbox))
    if left:
        run, outbox = left[0]
        count = sum(count_undelivered(each.folder) for each, _ in left)
        what, where = (f"run {run.id}", run.folder) if len(left) == 1 else (f"{len(left)} runs", run.folder.parent)
        reason = outbox.last_error or "it does not answer in time"
        notify(
            f"{count} entries of {what} could not be sent to {server.redact_uri(server.tracking_uri())} ({reason}); "
            f"they are kept in {where}, and `compression sync` sends them later."
        )
