"""Removing a person everywhere, and showing that they are gone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from compression.errors import UserError, first_line
from compression.study import launches, people, runs, store
from compression.study.tables import OfParticipant, Participant
from compression.tracking import ViewType, server
from compression.tracking.journal import JOURNAL_FILE
from compression.tracking.run import runs_folder


@dataclass(frozen=True)
class Trace:
    """Where something of a person was: how much before, how much is left."""

    place: str
    before: int
    left: int


def forget(id: str) -> list[Trace]:
    """Remove everything of the participant `id`: runs, files of this machine, rows of the database.

    The runs go first: if MLflow is away, nothing is lost of who they belong to. At a tracking server the runs end in
    its bin, which only its administrator can empty; `left` says how many, and `emptying` how.
    """
    with store.session() as opened:
        people.find(opened, id)
    before = count(id)
    remove_runs(id)
    for folder in folders(id):
        shutil.rmtree(folder)
    with store.session() as opened:
        for table in tables():
            opened.execute(delete(table).where(table.participant == id))
        opened.delete(people.find(opened, id))
    after = count(id)
    return [Trace(place, number, after[place]) for place, number in before.items()]


def count(id: str) -> dict[str, int]:
    """How much there is of `id`, by place."""
    with store.session() as opened:
        rows = {table.__tablename__: _rows(opened, table, id) for table in tables()}
        rows["participants"] = len(opened.scalars(select(Participant).where(Participant.id == id)).all())
    return rows | {"runs": len(runs.of_person(id, ViewType.ALL)), "folders": len(folders(id))}


def _rows(opened: Session, table: type[OfParticipant], id: str) -> int:
    return opened.scalar(select(func.count()).select_from(table).where(table.participant == id)) or 0


def tables() -> list[type[OfParticipant]]:
    """Every table that holds something of somebody."""
    return OfParticipant.__subclasses__()


def folders(id: str) -> list[Path]:
    """What lies of `id` on this machine: undelivered and resumable runs, what the web app started and bundled."""
    own = {run.id for run in runs.of_person(id, ViewType.ALL)}
    found = [path for path in runs_folder().glob("*") if path.name in own or _tagged(path, id)]
    kept = launches.folder_of(id)
    return [*found, *([kept] if kept.exists() else [])]


def _tagged(folder: Path, id: str) -> bool:
    """Whether a run that the server does not know yet is of `id`."""
    facts, journal = folder / "run.json", folder / JOURNAL_FILE
    made = json.loads(facts.read_text()).get("make", {}) if facts.exists() else {}
    said = json.dumps({"tag": "participant", "value": id})
    return made.get("tags", {}).get("participant") == id or journal.exists() and said in journal.read_text()


def remove_runs(id: str) -> None:
    """Delete the person's runs, models registered from them, and what they say of the person."""
    for run in runs.of_person(id, ViewType.ALL):
        with server.checked_client(f"remove the run {run.id}") as client:
            for version in client.search_model_versions(f"run_id = '{run.id}'"):
                client.delete_model_version(version.name, version.version)
            if client.get_run(run.id).info.lifecycle_stage == "active":
                client.delete_run(run.id)
    if (left := [run.id for run in runs.of_person(id, ViewType.ALL)]) and not _at_server():
        _empty_bin(left)


def _at_server() -> bool:
    return server.tracking_uri().startswith(("http://", "https://"))


def emptying(id: str) -> str:
    """The command with which a server's administrator removes for good what of `id` is in its bin."""
    left = ",".join(run.id for run in runs.of_person(id, ViewType.DELETED_ONLY))
    return f"mlflow gc --run-ids {left} --backend-store-uri … --tracking-uri {server.redact_uri(server.tracking_uri())}"


def _empty_bin(left: Sequence[str]) -> None:
    """Remove deleted runs for good, with their artifacts; only where the store is a file of this machine."""
    uri = server.tracking_uri()
    words = ["gc", "--run-ids", ",".join(left), "--backend-store-uri", uri, "--tracking-uri", uri]
    done = subprocess.run([sys.executable, "-m", "mlflow", *words], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        raise UserError(f"The runs could not be removed for good: {first_line(RuntimeError(lines[-1]))}.")
