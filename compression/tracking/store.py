"""A SQLite tracking store: made whole or not at all, by one process at a time.

MLflow makes its tables in dozens of steps, seconds long, each a transaction of its own. A process that is stopped in
between, or a second one that begins meanwhile, leaves a file that nobody can open any more (`_alembic_tmp_tags already
exists`). So a new store is made in a temporary file beside, under a lock, and moved into place.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from sqlalchemy.exc import SQLAlchemyError

from compression.errors import UserError, first_line
from compression.tracking.run import notify

if TYPE_CHECKING:
    from collections.abc import Iterator

SQLITE = "sqlite:///"
LOCK_TIMEOUT = 30.0  # seconds that a store may be busy with another process's transaction
MAKING_TIMEOUT = 180.0  # seconds to wait for another process that makes the store: 5 on an idle machine
STILL_SECONDS = 8.0  # a half-made store that does not change for so long is being made by nobody

MARK = "experiments"  # the first table; it gets its first row when all others are there
COMPANIONS = ("", "-journal", "-wal", "-shm")  # the files of a SQLite database


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite store; None if `uri` names another kind of store, or one in memory."""
    path = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(path).absolute() if uri.startswith(SQLITE) and path and not path.startswith((":", "file:")) else None


def make_whole(path: Path) -> None:
    """Make the tracking store at `path` if there is none; other processes wait meanwhile.

    One that was left half-made is moved aside and made anew. Raises UserError if the folder or the file cannot be used,
    and if the half-made store holds something of somebody else's.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if not _is_empty(path) and not _is_half_made(path):
        return
    with _exclusive(path.with_name(f".{path.name}.lock")):
        if _is_empty(path):
            _make(path)
        elif _stays_half_made(path):
            _require_nothing_in(path)
            kept = _move_aside(path)
            notify(
                f"The tracking store {path} was left half-made by a first run that was interrupted. It held no runs, "
                f"and is made anew; what there was is now {kept}."
            )
            _make(path)


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _is_half_made(path: Path) -> bool:
    with reading(path) as database:
        return MARK in _tables(database) and not database.execute(f"SELECT 1 FROM {MARK} LIMIT 1").fetchone()


def _stays_half_made(path: Path) -> bool:
    """Whether it is half-made, and nobody is making it: MLflow itself may be, which knows no lock of ours."""
    changed = time.time()
    while _is_half_made(path):
        changed = max(changed, path.stat().st_mtime)
        if time.time() > changed + STILL_SECONDS:
            return True
        time.sleep(0.2)
    return False


def _require_nothing_in(path: Path) -> None:
    """Raise UserError if a table has rows that is none of MLflow's."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401 - declares the tables

    with reading(path) as database:
        others = [name for name in _tables(database) if name not in Base.metadata.tables and name != "alembic_version"]
        if full := [name for name in others if database.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()]:
            raise UserError(
                f"The tracking store {path} was left half-made by a first run that was interrupted, and holds the "
                f"table {full[0]} besides; set MLFLOW_TRACKING_URI to another file."
            )


def _tables(database: sqlite3.Connection) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


@contextmanager
def reading(path: Path, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield a connection to a database. Raises UserError for a file that is none, or cannot be opened."""
    mode = "rwc" if create else "rw"  # not ro: what a killed process left of a transaction is undone first
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", timeout=LOCK_TIMEOUT, uri=True)) as opened:
            yield opened
    except sqlite3.Error as error:
        raise UserError(
            f"The tracking store {SQLITE}{path} cannot be used: {error}; set MLFLOW_TRACKING_URI to another."
        ) from error


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, which exists only meanwhile. Raises UserError if others hold it too long."""
    deadline = time.monotonic() + MAKING_TIMEOUT
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"The tracking store cannot be made: unable to open {path}: {error.strerror}; make the folder "
                "writable, or set MLFLOW_TRACKING_URI to another."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:  # else the owner before deleted it between our open and our lock
                break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise UserError(
                    f"Another process has been making a tracking store for {MAKING_TIMEOUT:.0f} s (it locks {path}): "
                    "wait for it, or end it."
                ) from None
            time.sleep(0.1)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _make(path: Path) -> None:
    """Make a store in a temporary file, and move it to `path`. Raises UserError if the disk is full."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # takes seconds, and only a first run needs it

    new = path.with_name(f".{path.name}.new")
    try:
        _delete(new)  # of a process that was killed
        store = SqlAlchemyStore(f"{SQLITE}{new}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
        store.engine.dispose()
        new.replace(path)
    except (OSError, SQLAlchemyError) as error:
        raise UserError(f"The tracking store {path} cannot be made: {first_line(error)}; make room there.") from error
    finally:
        _delete(new)


def _delete(path: Path) -> None:
    for end in COMPANIONS:
        path.with_name(path.name + end).unlink(missing_ok=True)


def _move_aside(path: Path) -> Path:
    """Rename a database, and return its new path. A transaction left beside it would be undone in the next one."""
    target = next(
        kept for n in itertools.count(1) if not (kept := path.with_name(f"{path.name}.half-made-{n}")).exists()
    )
    for end in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(target.with_name(target.name + end))
    return target
