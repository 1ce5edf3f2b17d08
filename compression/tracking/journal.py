"""The journal of a run: every entry is written to disk before it is sent, so a killed process loses nothing.

An entry is a small JSON object, one line of `journal.jsonl`. The file `delivered` holds the number of bytes of the
journal that have been delivered. `compression.tracking.outbox` does the delivery. What is read back may be damaged
(a failing disk, a power cut, an editor): it costs the damaged line, and nothing else.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import threading
import time
from collections import deque
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from compression.errors import UserError
from compression.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Entry = dict[str, Any]  # one line of the journal: a metric, a param, a tag, an artifact, a dataset, or the end
UNREADABLE = "unreadable"  # the key of an entry that stands for a damaged line

JOURNAL_FILE, LOCK_FILE, DELIVERED_FILE, RESERVE_FILE = "journal.jsonl", "lock", "delivered", "reserve"
REJECTED_FILE = "refused.jsonl"  # entries that the server rejected for good, with the reasons
OWNER_PATIENCE = 1.0  # seconds that a run waits for its own lock: `is_alive` holds it for an instant
RESERVE_BYTES = 1 << 20  # kept free, so that a run that fills the disk can still write its final entries


class JournalLockedError(Exception):
    """Another process has the journal open, or has delivered and deleted it."""


def home() -> Path:
    """Return the lab's own folder: `COMPRESSION_HOME`, or `.compression` in the current folder."""
    return Path(os.environ.get("COMPRESSION_HOME") or ".compression").absolute()


def write_error(path: Path, error: OSError) -> UserError:
    """Turn an OSError (full or read-only disk, quota, missing permission) into a UserError that names `path`."""
    reason = error.strerror or str(error)
    return UserError(f"Cannot write to {path}: {reason}; make room there, or set COMPRESSION_HOME elsewhere.")


def write_atomic(path: Path, content: BinaryIO) -> None:
    """Replace `path` by `content` atomically: readers see the old file or the new one, never a part.

    The content is synced to disk when this returns. Creates missing folders. Raises UserError if the disk is full or
    cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path.parent, error) from error


class Journal:
    """The entries of one run in order, on disk; open in one process at a time.

    The run appends and its sender reads, from any thread. Opening raises JournalLockedError if the journal is open
    elsewhere (in another process, or as another `Journal` of this one) or, with `create=False`, if there is none, and
    UserError if the folder cannot be written.
    """

    def __init__(self, folder: Path, create: bool = True) -> None:
        self.folder = folder
        self._mutex = threading.Lock()
        self._lock_fd = self._journal_fd = -1
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            elif not (folder / JOURNAL_FILE).exists():
                raise FileNotFoundError
            # Lock before creating the journal: an unlocked journal would mark a living run as dead to `sync`. The lock
            # itself may have been lost.
            self._lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
            self._acquire_lock(OWNER_PATIENCE if create else 0.0)
            flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0)
            self._journal_fd = os.open(folder / JOURNAL_FILE, flags, 0o644)
            self._truncate_partial_line()
        except (BlockingIOError, FileNotFoundError):
            self.close()
            raise JournalLockedError from None
        except OSError as error:
            self.close()
            raise write_error(folder, error) from error

    def _acquire_lock(self, patience: float) -> None:
        # flock, not lockf: it also excludes a second Journal of the same process, and ends with the process.
        deadline = time.monotonic() + patience
        while not _try_lock(self._lock_fd):
            if time.monotonic() >= deadline:
                raise BlockingIOError
            time.sleep(0.02)
        if not os.fstat(self._lock_fd).st_nlink:
            raise FileNotFoundError  # the previous owner deleted the file between our open and our lock

    def _truncate_partial_line(self) -> None:
        """Drop the line that a process killed while writing left unfinished."""
        content = (self.folder / JOURNAL_FILE).read_bytes()
        os.ftruncate(self._journal_fd, content.rfind(b"\n") + 1)

    def move(self, folder: Path) -> None:
        """Rename the folder; the journal stays open. Raises OSError."""
        with self._mutex:
            self.folder.rename(folder)
            self.folder = folder

    def reserve_space(self) -> None:
        """Occupy 1 MiB of disk until `release_space`, so that the final entries fit even on a full disk."""
        write_atomic(self.folder / RESERVE_FILE, BytesIO(bytes(RESERVE_BYTES)))

    def release_space(self) -> None:
        """Free the space that `reserve_space` occupied."""
        (self.folder / RESERVE_FILE).unlink(missing_ok=True)

    def append(self, entries: Iterable[Entry]) -> None:
        """Write `entries`, all or none. Raises UserError if the disk is full."""
        data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        with self._mutex:
            size_before = self._size()
            try:
                while data:  # os.write may write only a part on a nearly full disk
                    data = data[os.write(self._journal_fd, data) :]
            except OSError as error:
                os.ftruncate(self._journal_fd, size_before)
                raise write_error(self.folder, error) from error

    def entries(self, start: int = 0) -> Iterator[tuple[Entry, int]]:
        """Yield each entry from byte `start` on, with the byte offset of its end."""
        with (self.folder / JOURNAL_FILE).open("rb") as file:
            file.seek(start)
            end = start
            for line in file:
                if not line.endswith(b"\n"):
                    return  # another thread is writing this line
                end += len(line)
                yield _parse(line), end

    def pending(self, limit: int) -> list[tuple[Entry, int]]:
        """Return the next entries to deliver with their end offsets: at most `limit`, synced to disk."""
        with self._mutex:  # `append` may undo a partial write: nobody must have read it
            os.fsync(self._journal_fd)
            return list(itertools.islice(self.entries(delivered_bytes(self.folder)), limit))

    def mark_delivered(self, position: int) -> None:
        """Note that everything before byte `position` has been delivered."""
        write_atomic(self.folder / DELIVERED_FILE, BytesIO(str(position).encode()))

    def reject(self, entry: Entry, reason: str) -> None:
        """Move an entry that can never be delivered to `refused.jsonl`, with the reason."""
        with (self.folder / REJECTED_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "record": entry}) + "\n")

    def delete(self) -> None:
        """Delete the journal's files, once everything has been delivered, and close it."""
        for name in (JOURNAL_FILE, DELIVERED_FILE, RESERVE_FILE, LOCK_FILE):
            (self.folder / name).unlink(missing_ok=True)
        self.close()

    def last_entry(self) -> Entry:
        """Return the last entry, or an empty one if there is none."""
        return deque((entry for entry, _ in self.entries()), maxlen=1).pop() if self._size() else {}

    def _size(self) -> int:
        return os.fstat(self._journal_fd).st_size

    def close(self) -> None:
        """Close the files and release the lock. Closing twice is harmless."""
        for fd in (self._journal_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._journal_fd = self._lock_fd = -1


def _parse(line: bytes) -> Entry:
    """Parse a line; a damaged one becomes an entry that is rejected, and blocks no other."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    return entry if isinstance(entry, dict) else {UNREADABLE: line.decode(errors="replace")}


def delivered_bytes(folder: Path) -> int:
    """Return how many bytes of the journal in `folder` have been delivered, from its start to the end of a line.

    If the number is damaged, 0: the receiver takes twice what would otherwise be lost.
    """
    try:
        position = int((folder / DELIVERED_FILE).read_bytes())
        with (folder / JOURNAL_FILE).open("rb") as file:
            if position > 0:
                file.seek(position - 1)
                return position if file.read(1) == b"\n" else 0
    except (OSError, ValueError, OverflowError):
        return 0
    return 0


def count_undelivered(folder: Path) -> int:
    """Count the undelivered entries of the run in `folder`; its journal may be open in another process.

    None if it cannot be read, or was delivered and deleted.
    """
    try:
        with (folder / JOURNAL_FILE).open("rb") as file:
            file.seek(delivered_bytes(folder))
            return sum(line.endswith(b"\n") for line in file)
    except OSError:
        return 0


def is_alive(folder: Path) -> bool:
    """Whether some process has the journal in `folder` open."""
    return is_locked(folder / LOCK_FILE)


def is_locked(path: Path) -> bool:
    """Whether some process has the file locked."""
    try:
        with path.open("rb") as file:
            return not _try_lock(file.fileno())
    except OSError:  # there is none, or it is damaged
        return False


def _try_lock(fd: int) -> bool:
    """Lock an open file until it is closed; return whether no other has it locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
