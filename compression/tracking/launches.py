"""Runs that a project backend made for a process that it starts, before that process has opened a journal.

Killed together, they would leave nothing that says so but a run that is RUNNING for ever. The run bears the tag of the
folder that it will be tracked from, and in that folder a file is locked for as long as one of them lives.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from compression.tracking.journal import home, is_locked, write_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def launches_folder(folder: Path | None = None) -> Path:
    """Return the folder of the locks of `folder`, by default COMPRESSION_HOME."""
    return (folder or home()) / "launches"


@contextmanager
def launch_lock(run_id: str, folder: Path) -> Iterator[int]:
    """Hold the lock of a run in `folder`; yields its file descriptor, for the process to inherit.

    Raises UserError if the folder cannot be written.
    """
    path = launches_folder(folder) / run_id
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def is_launching(run_id: str) -> bool:
    """Whether the process that a backend started for this run, or the backend, lives."""
    return is_locked(launches_folder() / run_id)


def forget_dead_launches() -> None:
    """Delete the locks that nobody holds any more."""
    for path in launches_folder().glob("*"):
        if not is_locked(path):
            with suppress(OSError):  # made by another user, in whose container this runs
                path.unlink()
