"""Runs that are RUNNING at the server though nobody works on them, and no journal of this machine waits for them.

A request to create a run may arrive and its answer not, or late: the run is there, and nobody has heard of it; asked
for once more, there are two. So every run bears the folder that it is tracked from (`home_tag`), where whatever
creates a run leaves a journal first; a run without one is lost.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import UserError
from compression.tracking import server
from compression.tracking.journal import JOURNAL_FILE, home, write_error
from compression.tracking.launches import forget_dead_launches, is_launching
from compression.tracking.lookup import RUN_KEY_TAG, search_runs
from compression.tracking.metadata import DamagedError, read_metadata
from compression.tracking.run import NOTE_TAG, notify, run_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

HOME_TAG = "compression.home"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOST_NOTE = "Nobody works on this run: the process that asked for it was killed, or asked twice and got another."


def home_tag(folder: Path | None = None) -> dict[str, str]:
    """The tag of the runs that are tracked from `folder`, by default COMPRESSION_HOME. Creates the folder.

    No two folders that exist at the same time have the same: it is made of the kernel's boot, the device and the
    inode. A container that mounts the folder has the tag of its host. Raises UserError if it cannot be created.
    """
    folder = folder or home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.stat()
    except OSError as error:
        raise write_error(folder, error) from error
    return {HOME_TAG: hashlib.sha256(f"{_boot()} {place.st_dev} {place.st_ino}".encode()).hexdigest()[:16]}


@functools.cache
def _boot() -> str:
    return BOOT_ID.read_text(encoding="ascii") if BOOT_ID.exists() else platform.node()


def lost_runs() -> list[str]:
    """Return the ids of the runs tracked from here that are RUNNING at the server and lost.

    Raises UserError if the server does not answer.
    """
    if not home().exists():
        return []
    [(name, value)] = home_tag().items()
    with server.checked_client("look for runs that nobody works on") as client:
        found = search_runs(client, f"attributes.status = 'RUNNING' and tags.`{name}` = '{value}'")
        lost = [run.info.run_id for run in found if not _has_journal(run) and not is_launching(run.info.run_id)]
        # One that ended in the meantime had its journal deleted.
        return [run_id for run_id in lost if client.get_run(run_id).info.status == "RUNNING"]


def _has_journal(run: Run) -> bool:
    # By its key first: the folder is renamed from that to the id.
    return any(
        _is_of(run_folder(name), run.info.run_id) for name in (run.data.tags.get(RUN_KEY_TAG), run.info.run_id) if name
    )


def _is_of(folder: Path, run_id: str) -> bool:
    """Whether a journal in `folder` is of this run: not of another with the same key."""
    if not (folder / JOURNAL_FILE).exists():
        return False
    try:
        return read_metadata(folder)["id"] in ("", run_id)
    except DamagedError:
        return True  # for `sync` to find out


def end_runs() -> list[str]:
    """End the lost runs as KILLED; return their ids. Prints a sentence if the server does not answer."""
    forget_dead_launches()
    try:
        ids = lost_runs()
        for run_id in ids:
            end_run(run_id, "KILLED", LOST_NOTE)
    except UserError as error:
        notify(str(error))
        return []
    if ids:
        notify(f"Ended as KILLED, for nobody works on them: {', '.join(ids)}.")
    return ids


def end_run(run_id: str, status: str, note: str) -> None:
    """End the run, with `note` on its page. Raises UserError if the server does not answer."""
    with server.checked_client(f"close the run {run_id}") as client:
        client.set_tag(run_id, NOTE_TAG, note)
        client.set_terminated(run_id, status)
