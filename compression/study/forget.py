"""Deletion of all data of a participant, with counts that show that nothing is left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select

from compression.errors import UserError, first_line
from compression.study import database, launches, participant_runs, participants
from compression.study.tables import Participant, ParticipantRecord
from compression.tracking import ViewType, server
from compression.tracking.journal import JOURNAL_FILE
from compression.tracking.metadata import RUN_FILE
from compression.tracking.run import runs_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session


@dataclass(frozen=True)
class Deletion:
    """How much data of a participant was in one place (a table, `runs`, `folders`) before and after the deletion."""

    place: str
    before: int
    after: int
    remedy: str = ""  # the command that removes what is left


def forget(participant_id: str) -> list[Deletion]:
    """Delete all data of a participant: runs, files on this machine, rows of the database.

    The runs go first: if MLflow is unavailable, the rows that say whose they are remain. A tracking server only marks
    runs as deleted, which `after` then counts; its administrator purges them with `purge_command`.

    Raises StudyError if there is no such participant, UserError if MLflow does not answer.
    """
    with database.open_session() as session:
        participants.find(session, participant_id)
    before = count_data(participant_id)
    delete_runs(participant_id)
    for folder in find_folders(participant_id):
        shutil.rmtree(folder)
    with database.open_session() as session:
        # Rows first: they refer to the participant.
        for table in participant_tables():
            session.execute(delete(table).where(table.participant == participant_id))
    after = count_data(participant_id)  # while the database still knows which experiments are theirs
    remedies = {"runs": purge_command(participant_id)} if after["runs"] else {}
    with database.open_session() as session:
        session.delete(participants.find(session, participant_id))
        session.flush()
        after["participants"] = int(session.get(Participant, participant_id) is not None)
    return [Deletion(place, number, after[place], remedies.get(place, "")) for place, number in before.items()]


def count_data(participant_id: str) -> dict[str, int]:
    """Count a participant's rows by table, `runs` (deleted ones included) and `folders`."""
    with database.open_session() as session:
        counts = {table.__tablename__: _count_rows(session, table, participant_id) for table in participant_tables()}
        counts["participants"] = int(session.get(Participant, participant_id) is not None)
    counts["runs"] = len(participant_runs.load_runs(participant_id, ViewType.ALL))
    counts["folders"] = len(find_folders(participant_id))
    return counts


def _count_rows(session: Session, table: type[ParticipantRecord], participant_id: str) -> int:
    query = select(func.count()).select_from(table).where(table.participant == participant_id)
    return session.scalar(query) or 0


def participant_tables() -> list[type[ParticipantRecord]]:
    """Return all tables with rows that belong to a participant."""
    return ParticipantRecord.__subclasses__()


def find_folders(participant_id: str) -> list[Path]:
    """Return a participant's folders on this machine: undelivered and resumable runs, and launches with the bundle."""
    run_ids = {run.id for run in participant_runs.load_runs(participant_id, ViewType.ALL)}
    folders = [path for path in runs_folder().glob("*") if path.name in run_ids or _is_tagged(path, participant_id)]
    launch_folder = launches.launch_folder(participant_id)
    return [*folders, launch_folder] if launch_folder.exists() else folders


def _is_tagged(folder: Path, participant_id: str) -> bool:
    """Whether a run that the server may not know yet has the participant's tag: when created, or in its journal."""
    journal = folder / JOURNAL_FILE
    # as `tracking.Run.tag` writes it
    entry = json.dumps({"tag": "participant", "value": participant_id})
    if journal.exists() and entry in journal.read_text(encoding="utf-8", errors="replace"):
        return True
    try:
        created = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        return bool(created["make"]["tags"]["participant"] == participant_id)
    except (OSError, ValueError, KeyError, TypeError):  # it was created, or for nobody, or is damaged
        return False


def delete_runs(participant_id: str) -> None:
    """Delete a participant's runs and the model versions registered from them; purge them unless a server has them."""
    for run in participant_runs.load_runs(participant_id, ViewType.ALL):
        with server.checked_client(f"remove the run {run.id}") as client:
            for version in client.search_model_versions(f"run_id = '{run.id}'"):
                client.delete_model_version(version.name, version.version)
            # One that was deleted already, by a call that was interrupted, cannot be deleted again.
            if client.get_run(run.id).info.lifecycle_stage == "active":
                client.delete_run(run.id)
    deleted = [run.id for run in participant_runs.load_runs(participant_id, ViewType.ALL)]
    # `mlflow gc` works on the store itself, to which only a server's administrator has access.
    if deleted and not server.tracking_uri().startswith(("http://", "https://")):
        _purge_runs(deleted)


def purge_command(participant_id: str) -> str:
    """Return the command with which a server's administrator purges the participant's deleted runs."""
    ids = ",".join(run.id for run in participant_runs.load_runs(participant_id, ViewType.DELETED_ONLY))
    return f"mlflow gc --run-ids {ids} --backend-store-uri … --tracking-uri {server.redact_uri(server.tracking_uri())}"


def _purge_runs(run_ids: Sequence[str]) -> None:
    """Remove deleted runs and their artifacts from a local store. Raises UserError if `mlflow gc` fails."""
    uri = server.tracking_uri()
    arguments = ["gc", "--run-ids", ",".join(run_ids), "--backend-store-uri", uri, "--tracking-uri", uri]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        raise UserError(f"The runs could not be removed for good: {first_line(RuntimeError(lines[-1]))}.")
