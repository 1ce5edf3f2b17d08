"""Bringing a run's journal to MLflow: at once while the run lives, or later by another process."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from compression.tracking import server
from compression.tracking.journal import JOURNAL, REFUSED, Busy, Journal, Record, waiting, write_whole
from compression.tracking.outbox import Refused, Undelivered, deliver
from compression.tracking.run import NOTE, folder_of, last_words, runs_folder, say

KEY = "compression.key"  # marks a run from before it has an id, so that it is never made twice
VANISHED = "The process ended without a last word: killed, or out of memory."


def refused_for_good(error: Exception) -> bool:
    """Whether the same request would be refused again, whenever it comes."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        # 401 and 403 end with another password, 404 with the server behind the proxy being back.
        status = error.response.status_code
        return 400 <= status < 500 and status not in (401, 403, 404, 408, 429)
    if isinstance(error, MlflowException):
        # A lost database connection is BAD_REQUEST too, with a link to SQLAlchemy's explanation.
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST") or (
            error.error_code == "BAD_REQUEST" and "sqlalche.me" not in str(error)
        )
    return isinstance(error, (Refused, FileNotFoundError))  # an artifact that somebody deleted


@dataclass(frozen=True)
class Delivery:
    """Sends the records of the run in `folder`; made from the folder alone, so that any process can.

    `run.json` there holds the server (`uri`), the run's `id` at it, its `experiment`, and when its command
    `began` (seconds since the epoch). While the run has no id yet, `make` is what it takes to make it.
    """

    folder: Path

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    @functools.cached_property
    def client(self) -> MlflowClient:
        # No password is kept on disk: if the URI in use names the same server, it is the one that has it.
        kept, now = self.facts["uri"], server.tracking_uri()
        return server.client(now if server.public(now) == kept else kept)

    @functools.cached_property
    def id(self) -> str:
        """The run's id at the server; a run that does not exist yet is made now."""
        if not self.facts["id"]:
            self.facts["id"] = self._make(**self.facts["make"])
            self.keep(self.facts)
        return self.facts["id"]

    def keep(self, facts: dict[str, Any]) -> None:
        write_whole(self.folder / "run.json", BytesIO(json.dumps(facts, indent=1).encode()))

    def _make(self, experiment: str, name: str, tags: dict[str, str], start: int) -> str:
        if parent := tags.get(MLFLOW_PARENT_RUN_ID):
            tags = tags | {MLFLOW_PARENT_RUN_ID: _id_at_server(parent)}
        # It may exist: the request arrived and the answer got lost.
        made = self.client.search_runs([experiment], f"tags.`{KEY}` = '{tags[KEY]}'")
        return (made[0] if made else self.client.create_run(experiment, start, tags, name)).info.run_id

    def __call__(self, records: list[Record]) -> None:
        """Send `records` in order; raises `Refused` or `Undelivered`."""
        try:
            for together, group in itertools.groupby(records, key=_in_batch):
                for part in [list(group)] if together else ([record] for record in group):
                    self._send(part)
        except Exception as error:
            kind = Refused if refused_for_good(error) else Undelivered
            raise kind(server.reason(error)) from error

    def _send(self, records: list[Record]) -> None:
        [first, *_] = records
        if _in_batch(first):
            self._log_batch(records)
        elif "artifact" in first:
            self._log_artifact(Path(first["artifact"]))
        elif "dataset" in first:
            self._log_dataset(first)
        elif "end" in first:
            self.client.set_terminated(self.id, first["end"], first["at"])
        else:
            raise Refused("not a record of this lab")

    def _log_batch(self, records: list[Record]) -> None:
        metrics = [Metric(r["metric"], r["value"], r["at"], r["step"]) for r in records if "metric" in r]
        params = [Param(r["param"], r["value"]) for r in records if "param" in r]
        tags = {r["tag"]: RunTag(r["tag"], r["value"]) for r in records if "tag" in r}  # the last word counts
        self.client.log_batch(self.id, metrics, params, list(tags.values()))

    def _log_artifact(self, path: Path) -> None:
        to = None if path.parent == Path() else path.parent.as_posix()
        self.client.log_artifact(self.id, str(self.folder / "artifacts" / path), to)

    def _log_dataset(self, record: Record) -> None:
        source = json.dumps({"uri": record["source"]})
        dataset = Dataset(record["dataset"], record["digest"], "local", source)
        context = InputTag("mlflow.data.context", record["context"])
        self.client.log_inputs(self.id, [DatasetInput(dataset, [context])])


def _in_batch(record: Record) -> bool:
    return not record.keys().isdisjoint(("metric", "param", "tag"))


def _id_at_server(run_id: str) -> str:
    """A run that was started while the server was gone goes by its key here, and by another id there."""
    if not (folder_of(run_id) / "run.json").exists():
        return run_id
    if there := Delivery(folder_of(run_id)).facts["id"]:
        return there
    raise Undelivered(f"the parent run {run_id} is not at the server yet")


def tidy(delivery: Delivery, journal: Journal) -> None:
    """Everything has arrived: keep only what somebody may still need of the run's folder."""
    folder, last = delivery.folder, journal.last()
    if "end" not in last:
        return  # the last words did not get onto a full disk: `sync` finds some
    journal.remove()
    if (folder / REFUSED).exists():
        say(f"{delivery.facts['uri']} refused a part of what run {delivery.id} said; see {folder / REFUSED}.")
    elif last["end"] != "FINISHED":
        shutil.rmtree(folder / "artifacts", ignore_errors=True)  # the checkpoints stay, to resume from
    else:
        shutil.rmtree(folder)
        if delivery.id != folder.name:  # the run is known by its key: in its parent, on somebody's screen
            delivery.keep(delivery.facts)


def _journals() -> list[Path]:
    """The folders of the runs with something left to deliver, oldest first: parents before children."""
    return sorted((path.parent for path in runs_folder().glob(f"*/{JOURNAL}")), key=_began)


def _began(folder: Path) -> float:
    path = folder / "run.json"
    return path.stat().st_ctime if path.exists() else 0.0


def unsent() -> dict[str, int]:
    """Run id -> how many of its records have not arrived, those of runs still going on included."""
    return {folder.name: count for folder in _journals() if (count := waiting(folder))}


def sync() -> int:
    """Deliver what processes that have ended left behind; return how many records left the journals.

    A run whose process was killed gets its last words here: status KILLED and a note. Runs that another
    process is still writing are left to it. A server that does not answer is named on the terminal, once.
    """
    gone: set[str] = set()
    return sum(_deliver_leftovers(folder, gone) for folder in _journals())


def _deliver_leftovers(folder: Path, gone: set[str]) -> int:
    try:
        journal = Journal(folder, create=False)
    except Busy:
        return 0  # its process lives, and sends them itself
    with closing(journal):
        delivery, before = Delivery(folder), waiting(folder)
        if delivery.facts["uri"] in gone:
            return 0
        if "end" not in journal.last():
            journal.append(_words_for_the_dead(delivery, journal))
        try:
            deliver(journal, delivery)
            tidy(delivery, journal)
        except Undelivered as error:
            gone.add(delivery.facts["uri"])
            say(f"{delivery.facts['uri']} does not take what earlier runs left for it: {error}")
        return max(0, before - waiting(folder))


def _words_for_the_dead(delivery: Delivery, journal: Journal) -> list[Record]:
    records = [record for record, _ in journal.records()]
    ended = max((r["at"] for r in records if "at" in r), default=int(delivery.facts["began"] * 1000))
    notes = [r["value"] for r in records if r.get("tag") == NOTE]
    note = "\n\n".join([VANISHED, *notes[-1:]])
    return [{"tag": NOTE, "value": note}, *last_words("KILLED", delivery.facts["began"], ended)]
