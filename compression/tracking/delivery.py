"""Sending a run's journal to MLflow: at once while the run lives, or later from another process."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
import threading
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from compression.errors import UserError
from compression.tracking import lost, server
from compression.tracking.journal import (
    JOURNAL_FILE,
    REJECTED_FILE,
    Entry,
    Journal,
    JournalLockedError,
    count_undelivered,
    home,
    is_alive,
    write_atomic,
)
from compression.tracking.launches import is_launching
from compression.tracking.lookup import RUN_KEY_TAG, find_run
from compression.tracking.metadata import RUN_FILE, DamagedError, read_metadata
from compression.tracking.outbox import RejectedError, UnavailableError, deliver
from compression.tracking.run import NOTE_TAG, clean_name, clean_text, final_entries, notify, run_folder, runs_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

    from compression.tracking.metadata import NewRun, RunMetadata

KILLED_NOTE = "The process ended before it could end the run: it was killed, or ran out of memory."
UPLOAD_RATE = 1e6  # bytes a second that the way to a server carries at least
ENDED = ("FINISHED", "FAILED", "KILLED")

# What a journal's entries hold, by the field that they are known by. A line may be damaged, and be JSON all the same.
SHAPES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "metric": {"metric": str, "value": (int, float), "step": int, "at": int},
    "param": {"param": str, "value": str},
    "tag": {"tag": str, "value": str},
    "artifact": {"artifact": str},
    "dataset": {"dataset": str, "source": str, "digest": str, "context": str},
    "end": {"end": str, "at": int},
}


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


@contextmanager
def delivery_errors() -> Iterator[None]:
    """Turn whatever fails inside the block into RejectedError or UnavailableError, with a short reason."""
    try:
        yield
    except Exception as error:
        kind = RejectedError if is_permanent_error(error) else UnavailableError
        raise kind(server.short_reason(error)) from error


class MlflowSender:
    """Sends journal entries of the run in `folder` to MLflow.

    It needs the folder alone (`run.json` there, see RunMetadata), so that any process can send. `folder` takes the
    run's id as its name once the run has been created, unless `settle` came first.
    """

    def __init__(self, folder: Path, journal: Journal | None = None) -> None:
        self.folder = folder
        self._journal = journal  # to be moved with the folder
        self._settling = threading.Lock()

    @functools.cached_property
    def metadata(self) -> RunMetadata:
        """The content of the run's `run.json`. Raises DamagedError."""
        return read_metadata(self.folder)

    @property
    def uri(self) -> str:
        """The run's server, with credentials."""
        # `run.json` holds no password. The current tracking URI has one if it names the same server.
        stored, current = self.metadata["uri"], server.tracking_uri()
        return current if server.redact_uri(current) == stored else stored

    @functools.cached_property
    def client(self) -> MlflowClient:
        """A client of the run's server. Raises UnavailableError if its address is none."""
        try:
            return server.create_client(self.uri)
        except MlflowException as error:
            raise UnavailableError(server.short_reason(error)) from error

    @functools.cached_property
    def id(self) -> str:
        """The run's id at the server; creates the run there first if need be."""
        if not self.metadata["id"]:
            self.metadata["id"] = self._create_run(self.metadata["make"])
            with self._settling:
                self.save_metadata(self.metadata)
                if self._journal is not None:
                    self._journal.move(run_folder(self.metadata["id"]))
                    self.folder = self._journal.folder
        return self.metadata["id"]

    def create(self) -> None:
        """Create the run at the server. Raises UnavailableError: it is tried again, whatever the reason is."""
        try:
            with delivery_errors():
                self.id  # noqa: B018 - creates it
        except RejectedError as error:  # its experiment was deleted, say, and may be restored
            raise UnavailableError(str(error)) from error

    def settle(self) -> str:
        """Fix the folder as it is called now, and return its name: the id, or the key of a run not created yet."""
        with self._settling:
            self._journal = None
            return self.folder.name

    def save_metadata(self, metadata: RunMetadata) -> None:
        """Write `run.json`. Raises UserError if the disk is full."""
        write_atomic(self.folder / RUN_FILE, BytesIO(json.dumps(metadata, indent=1).encode()))

    def _create_run(self, new: NewRun) -> str:
        tags = new["tags"]
        if parent := tags.get(MLFLOW_PARENT_RUN_ID):
            tags = tags | {MLFLOW_PARENT_RUN_ID: _id_at_server(parent)}
        # The run may exist: an earlier request arrived, but its answer was lost.
        found = self.client.search_runs([new["experiment"]], f"tags.`{RUN_KEY_TAG}` = '{tags[RUN_KEY_TAG]}'")
        run = found[0] if found else self.client.create_run(new["experiment"], new["start"], tags, new["name"])
        if not run.info.run_id:
            raise UnavailableError("the answer has no run id")  # `{}`, of something that is no MLflow server
        return str(run.info.run_id)

    def info(self) -> RunInfo | None:
        """What the server knows of the run; None if it was deleted for good. Raises UnavailableError."""
        try:
            with delivery_errors():
                return self.client.get_run(self.id).info
        except RejectedError:
            return None

    def seconds_to_send(self, entries: list[Entry]) -> float:
        """How long the files among `entries` may take to send, s."""
        paths = [self.folder / "artifacts" / entry["artifact"] for entry in entries if "artifact" in entry]
        size: int = sum(path.stat().st_size for path in paths if path.exists())
        return size / UPLOAD_RATE

    def __call__(self, entries: list[Entry]) -> None:
        """Send `entries` in order. Raises RejectedError or UnavailableError."""
        with delivery_errors():
            checked = [checked_entry(entry) for entry in entries]
            for batched, group in itertools.groupby(checked, key=_is_batched):
                for part in [list(group)] if batched else ([entry] for entry in group):
                    self._send(part)

    def _send(self, entries: list[Entry]) -> None:
        [first, *_] = entries
        if _is_batched(first):
            self._log_batch(entries)
        elif "artifact" in first:
            self._log_artifact(Path(first["artifact"]))
        elif "dataset" in first:
            self._log_dataset(first)
        else:
            self.client.set_terminated(self.id, first["end"], first["at"])

    def _log_batch(self, entries: list[Entry]) -> None:
        metrics = [Metric(e["metric"], e["value"], e["at"], e["step"]) for e in entries if "metric" in e]
        params = [Param(e["param"], e["value"]) for e in entries if "param" in e]
        tags = {e["tag"]: RunTag(e["tag"], e["value"]) for e in entries if "tag" in e}  # the last value counts
        self.client.log_batch(self.id, metrics, params, list(tags.values()))

    def _log_artifact(self, path: Path) -> None:
        root = (self.folder / "artifacts").resolve()
        source = (root / path).resolve()
        if not source.is_relative_to(root):
            raise RejectedError("not a file of this run")  # a damaged journal, or a link to elsewhere
        if source.exists() and not source.is_file():
            raise RejectedError("not a file")  # a pipe is never read to its end
        self.client.log_artifact(self.id, str(root / path), None if path.parent == Path() else path.parent.as_posix())

    def _log_dataset(self, entry: Entry) -> None:
        source = json.dumps({"uri": entry["source"]})
        dataset = Dataset(entry["dataset"], entry["digest"], "local", source)
        context = InputTag("mlflow.data.context", entry["context"])
        self.client.log_inputs(self.id, [DatasetInput(dataset, [context])])


def checked_entry(entry: Entry) -> Entry:
    """Return an entry as MLflow can take it. Raises RejectedError if it is damaged."""
    shape = next((shape for name, shape in SHAPES.items() if name in entry), None)
    if shape is None:
        raise RejectedError("not a record of this lab")
    checked = {name: _checked_value(name, entry.get(name), kind) for name, kind in shape.items()}
    if checked.get("end", ENDED[0]) not in ENDED:
        raise RejectedError("not a record of this lab: a run ends otherwise")
    return checked


def _checked_value(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    is_sound = isinstance(value, kind) and not isinstance(value, bool)
    if isinstance(value, float):
        is_sound = is_sound and math.isfinite(value)
    if isinstance(value, int):
        is_sound = is_sound and abs(value) < 1 << 63  # what a database's columns hold
    if not is_sound:
        raise RejectedError(f"not a record of this lab: {name} is {value!r:.100}")
    if not isinstance(value, str):
        return value
    return clean_name(value) if name in ("metric", "param", "tag") else clean_text(value)


def _is_batched(entry: Entry) -> bool:
    """Whether MLflow takes such entries many at a time, in one `log_batch`."""
    return not entry.keys().isdisjoint(("metric", "param", "tag"))


def _id_at_server(run_id: str) -> str:
    """Translate the local id of a run that started during an outage to its id at the server.

    Raises UnavailableError if the run has not been created there yet.
    """
    try:
        metadata = read_metadata(run_folder(run_id))
    except DamagedError:
        return run_id  # cleaned up: it was known by its id from the start
    if not metadata["id"]:
        raise UnavailableError(f"the parent run {run_id} is not at the server yet")
    return metadata["id"]


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
    with suppress(OSError):
        return (folder / RUN_FILE).stat().st_ctime
    return 0.0


def undelivered_runs() -> dict[str, int]:
    """Map the id of each run with undelivered entries to their number; includes runs still in progress."""
    return {folder.name: count for folder in _folders_with_journal() if (count := count_undelivered(folder))}


def dead_runs() -> list[str]:
    """The ids of this machine's runs whose process was killed before it could end them: `sync` will."""
    return [f.name for f in _folders_with_journal() if not is_alive(f) and not is_launching(f.name)]


def damaged_folder() -> Path:
    """Return the folder of what `sync` found damaged and set aside."""
    return home() / "damaged"


def sync() -> int:
    """Deliver what processes that have ended left behind; return the number of entries delivered or rejected.

    A run whose process was killed gets the status KILLED and a note, also one that only the server knows of. Runs that
    another process is still writing are skipped. Each run is delivered by itself: what is damaged is set aside and
    named. Prints one message per server that does not answer.
    """
    unavailable: set[str] = set()
    sent = sum(_sync_run(folder, unavailable) for folder in _folders_with_journal())
    if server.redact_uri(server.tracking_uri()) not in unavailable:
        lost.end_runs()
    return sent


def _sync_run(folder: Path, unavailable: set[str]) -> int:
    """Deliver one run, unless its server is among the `unavailable`; add the server there if it does not answer."""
    if is_alive(folder) or is_launching(folder.name):
        return 0  # the run's process delivers by itself, or whoever started it sees to its end
    try:
        journal = Journal(folder, create=False)
    except JournalLockedError:
        return 0  # begun, or delivered by another process, in this instant
    except UserError as error:
        _set_aside(folder, str(error))
        return 0
    with closing(journal):
        try:
            return _deliver_dead_run(MlflowSender(folder), journal, unavailable)
        except DamagedError as error:
            return _deliver_without_metadata(journal, str(error), unavailable)
        except UserError as error:  # a full disk, which takes nothing of the other runs either
            notify(str(error))
            return 0


def _deliver_dead_run(sender: MlflowSender, journal: Journal, unavailable: set[str]) -> int:
    uri, before = sender.metadata["uri"], count_undelivered(journal.folder)
    if uri in unavailable:
        return 0
    if not sender.metadata["id"] and not before:  # killed before it had a run, or anything to say
        shutil.rmtree(journal.folder)
        return 0
    try:
        sender.create()
        if "end" not in journal.last_entry():
            journal.append(_final_entries_of_dead_run(sender, journal))
        deliver(journal, sender)
        with delivery_errors():
            clean_up(sender, journal)
    except (RejectedError, UnavailableError) as error:
        if server.answers(sender.uri):
            notify(f"{uri} does not accept what the run {journal.folder.name} left to deliver: {error}")
        else:
            unavailable.add(uri)
            notify(f"{uri} does not accept what earlier runs left to deliver: {error}")
    return max(0, before - count_undelivered(journal.folder))


def _deliver_without_metadata(journal: Journal, reason: str, unavailable: set[str]) -> int:
    """Deliver a run whose `run.json` is damaged, if the current server knows it; else set its folder aside."""
    uri = server.tracking_uri()
    redacted = server.redact_uri(uri)
    if redacted in unavailable:
        return 0
    try:
        with delivery_errors():
            info = find_run(server.create_client(uri), journal.folder.name).info
    except UnavailableError as error:
        unavailable.add(redacted)
        notify(f"{redacted} does not accept what earlier runs left to deliver: {error}")
        return 0
    except RejectedError:
        if journal.last_entry():
            _set_aside(journal.folder, reason)
        else:  # killed before it had a run, or anything to say
            shutil.rmtree(journal.folder)
        return 0
    sender, damaged = MlflowSender(journal.folder), journal.folder / RUN_FILE
    with suppress(FileNotFoundError):
        damaged.rename(damaged.with_name(f"{RUN_FILE}.damaged"))
    sender.save_metadata(
        {"uri": redacted, "id": info.run_id, "experiment": info.experiment_id, "began": info.start_time / 1000}
    )
    return _deliver_dead_run(sender, journal, unavailable)


def _set_aside(folder: Path, reason: str) -> None:
    """Move a folder that cannot be delivered out of the way, and name it."""
    target = damaged_folder() / f"{folder.name}-{len(list(damaged_folder().glob('*')))}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    except OSError:
        target = folder  # of another user, say: it is named every time
    notify(f"The run {folder.name} cannot be delivered ({reason}); what is left of it is in {target}.")


def _final_entries_of_dead_run(sender: MlflowSender, journal: Journal) -> list[Entry]:
    """The entries that end a run whose process is gone; raises UnavailableError if the server does not answer."""
    entries = [entry for entry, _ in journal.entries()]
    began, info = sender.metadata["began"], sender.info()
    if info is not None and info.status in ENDED:  # by the backend that started the process, which outlived it
        return final_entries(info.status, began, info.end_time)
    times = [entry["at"] for entry in entries if isinstance(entry.get("at"), int)]
    notes = [entry["value"] for entry in entries if entry.get("tag") == NOTE_TAG and "value" in entry]
    note = "\n\n".join([KILLED_NOTE, *map(str, notes[-1:])])
    ended = max(times, default=int(began * 1000))
    return [{"tag": NOTE_TAG, "value": note}, *final_entries("KILLED", began, ended)]
