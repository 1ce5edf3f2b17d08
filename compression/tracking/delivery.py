"""Sending a run's journal to MLflow: at once while the run lives, or later from another process."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from compression.tracking import server
from compression.tracking.journal import (
    JOURNAL_FILE,
    REJECTED_FILE,
    Entry,
    Journal,
    JournalLockedError,
    count_undelivered,
    write_atomic,
)
from compression.tracking.outbox import RejectedError, UnavailableError, deliver
from compression.tracking.run import NOTE_TAG, final_entries, notify, run_folder, runs_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY_TAG = "compression.key"  # identifies a run before MLflow has given it an id, so that it is created only once
KILLED_NOTE = "The process ended before it could end the run: it was killed, or ran out of memory."


class NewRun(TypedDict):
    """The arguments to create a run with at the server."""

    experiment: str
    name: str | None
    tags: dict[str, str]
    start: int  # ms since the epoch


class RunMetadata(TypedDict):
    """The content of `run.json` in a run's folder."""

    uri: str  # the tracking server, without credentials
    id: str  # the run's id at the server; empty until it has been created there
    experiment: str
    began: float  # when the command started, s since the epoch
    make: NotRequired[NewRun]  # for a run that does not exist at the server yet


def is_permanent_error(error: Exception) -> bool:
    """Whether sending the same request again would fail again, whenever that is."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        # 401 and 403 end with another password, 404 when the server behind the proxy is back, 408 and 429 with time.
        status = error.response.status_code
        return 400 <= status < 500 and status not in (401, 403, 404, 408, 429)
    if isinstance(error, MlflowException):
        # A lost database connection is BAD_REQUEST too, with a link to SQLAlchemy's explanation.
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST") or (
            error.error_code == "BAD_REQUEST" and "sqlalche.me" not in str(error)
        )
    return isinstance(error, (RejectedError, FileNotFoundError))  # FileNotFoundError: somebody deleted an artifact


@dataclass(frozen=True)
class MlflowSender:
    """Sends journal entries of the run in `folder` to MLflow.

    It needs the folder alone (`run.json` there, see RunMetadata), so that any process can send.
    """

    folder: Path

    @functools.cached_property
    def metadata(self) -> RunMetadata:
        """The content of the run's `run.json`."""
        found: RunMetadata = json.loads((self.folder / "run.json").read_text())
        return found

    @functools.cached_property
    def client(self) -> MlflowClient:
        """A client of the run's server."""
        # `run.json` holds no password. The current tracking URI has one if it names the same server.
        stored, current = self.metadata["uri"], server.tracking_uri()
        return server.create_client(current if server.redact_uri(current) == stored else stored)

    @functools.cached_property
    def id(self) -> str:
        """The run's id at the server; creates the run there first if need be."""
        if not self.metadata["id"]:
            self.metadata["id"] = self._create_run(self.metadata["make"])
            self.save_metadata(self.metadata)
        return self.metadata["id"]

    def save_metadata(self, metadata: RunMetadata) -> None:
        """Write `run.json`. Raises UserError if the disk is full."""
        write_atomic(self.folder / "run.json", BytesIO(json.dumps(metadata, indent=1).encode()))

    def _create_run(self, new: NewRun) -> str:
        tags = new["tags"]
        if parent := tags.get(MLFLOW_PARENT_RUN_ID):
            tags = tags | {MLFLOW_PARENT_RUN_ID: _id_at_server(parent)}
        # The run may exist: an earlier request arrived, but its answer was lost.
        found = self.client.search_runs([new["experiment"]], f"tags.`{RUN_KEY_TAG}` = '{tags[RUN_KEY_TAG]}'")
        run = found[0] if found else self.client.create_run(new["experiment"], new["start"], tags, new["name"])
        return str(run.info.run_id)

    def __call__(self, entries: list[Entry]) -> None:
        """Send `entries` in order. Raises RejectedError or UnavailableError."""
        try:
            for batched, group in itertools.groupby(entries, key=_is_batched):
                for part in [list(group)] if batched else ([entry] for entry in group):
                    self._send(part)
        except Exception as error:
            kind = RejectedError if is_permanent_error(error) else UnavailableError
            raise kind(server.short_reason(error)) from error

    def _send(self, entries: list[Entry]) -> None:
        [first, *_] = entries
        if _is_batched(first):
            self._log_batch(entries)
        elif "artifact" in first:
            self._log_artifact(Path(first["artifact"]))
        elif "dataset" in first:
            self._log_dataset(first)
        elif "end" in first:
            self.client.set_terminated(self.id, first["end"], first["at"])
        else:
            raise RejectedError("not a record of this lab")

    def _log_batch(self, entries: list[Entry]) -> None:
        metrics = [Metric(e["metric"], e["value"], e["at"], e["step"]) for e in entries if "metric" in e]
        params = [Param(e["param"], e["value"]) for e in entries if "param" in e]
        tags = {e["tag"]: RunTag(e["tag"], e["value"]) for e in entries if "tag" in e}  # the last value counts
        self.client.log_batch(self.id, metrics, params, list(tags.values()))

    def _log_artifact(self, path: Path) -> None:
        folder = None if path.parent == Path() else path.parent.as_posix()
        self.client.log_artifact(self.id, str(self.folder / "artifacts" / path), folder)

    def _log_dataset(self, entry: Entry) -> None:
        source = json.dumps({"uri": entry["source"]})
        dataset = Dataset(entry["dataset"], entry["digest"], "local", source)
        context = InputTag("mlflow.data.context", entry["context"])
        self.client.log_inputs(self.id, [DatasetInput(dataset, [context])])


def _is_batched(entry: Entry) -> bool:
    """Whether MLflow takes such entries many at a time, in one `log_batch`."""
    return not entry.keys().isdisjoint(("metric", "param", "tag"))


def _id_at_server(run_id: str) -> str:
    """Translate the local id of a run that started during an outage to its id at the server.

    Raises UnavailableError if the run has not been created there yet.
    """
    if not (run_folder(run_id) / "run.json").exists():
        return run_id
    if remote_id := MlflowSender(run_folder(run_id)).metadata["id"]:
        return remote_id
    raise UnavailableError(f"the parent run {run_id} is not at the server yet")


def clean_up(sender: MlflowSender, journal: Journal) -> None:
    """Delete what nobody needs of a run's folder, after everything has been delivered.

    Checkpoints of a run that did not finish stay, to resume from, and so do rejected entries.
    """
    folder, last = sender.folder, journal.last_entry()
    if "end" not in last:
        return  # a full disk did not take the final entries: `sync` will write some
    journal.delete()
    if (folder / REJECTED_FILE).exists():
        notify(f"{sender.metadata['uri']} rejected some entries of run {sender.id}; see {folder / REJECTED_FILE}.")
    elif last["end"] != "FINISHED":
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
    else:
        shutil.rmtree(folder)
        if sender.id != folder.name:  # children and users know the run by its key: keep the translation to its id
            sender.save_metadata(sender.metadata)


def _folders_with_journal() -> list[Path]:
    """The folders of runs with a journal, oldest first, so that parents come before their children."""
    return sorted((path.parent for path in runs_folder().glob(f"*/{JOURNAL_FILE}")), key=_created)


def _created(folder: Path) -> float:
    path = folder / "run.json"
    return path.stat().st_ctime if path.exists() else 0.0


def undelivered_runs() -> dict[str, int]:
    """Map the id of each run with undelivered entries to their number; includes runs still in progress."""
    return {folder.name: count for folder in _folders_with_journal() if (count := count_undelivered(folder))}


def sync() -> int:
    """Deliver what processes that have ended left behind; return the number of entries delivered or rejected.

    A run whose process was killed gets the status KILLED and a note. Runs that another process is still writing are
    skipped. Prints one message per server that does not answer.
    """
    unavailable: set[str] = set()
    return sum(_sync_run(folder, unavailable) for folder in _folders_with_journal())


def _sync_run(folder: Path, unavailable: set[str]) -> int:
    """Deliver one run, unless its server is among the `unavailable`; add the server there if it does not answer."""
    try:
        journal = Journal(folder, create=False)
    except JournalLockedError:
        return 0  # the run's process is alive, and delivers by itself
    with closing(journal):
        sender, before = MlflowSender(folder), count_undelivered(folder)
        if sender.metadata["uri"] in unavailable:
            return 0
        if "end" not in journal.last_entry():
            journal.append(_final_entries_of_killed_run(sender, journal))
        try:
            deliver(journal, sender)
            clean_up(sender, journal)
        except UnavailableError as error:
            unavailable.add(sender.metadata["uri"])
            notify(f"{sender.metadata['uri']} does not accept what earlier runs left to deliver: {error}")
        return max(0, before - count_undelivered(folder))


def _final_entries_of_killed_run(sender: MlflowSender, journal: Journal) -> list[Entry]:
    entries = [entry for entry, _ in journal.entries()]
    began = sender.metadata["began"]
    ended = max((e["at"] for e in entries if "at" in e), default=int(began * 1000))
    notes = [e["value"] for e in entries if e.get("tag") == NOTE_TAG]
    note = "\n\n".join([KILLED_NOTE, *notes[-1:]])
    return [{"tag": NOTE_TAG, "value": note}, *final_entries("KILLED", began, ended)]
