"""A journal on disk: what is said is here before it is anywhere else, and outlives the process.

A record is a small JSON object. It is appended to `journal.jsonl`; `delivered` holds how many bytes of that
have arrived where they should. `compression.tracking.outbox` delivers it.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from compression.errors import UserError

Record = dict[str, Any]

JOURNAL, LOCK, DELIVERED, RESERVE = "journal.jsonl", "lock", "delivered", "reserve"
REFUSED = "refused.jsonl"  # what nobody will ever take, with the reasons
RESERVE_BYTES = 1 << 20  # kept free for the last words of a run that filled the disk


class Busy(Exception):
    """Another process holds the journal, or has delivered and removed it."""


def home() -> Path:
    """The lab's own folder: `COMPRESSION_HOME`, or `.compression` in the current folder."""
    return Path(os.environ.get("COMPRESSION_HOME") or ".compression").absolute()


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a full or read-only disk, a quota, a missing right."""
    reason = error.strerror or str(error)
    return UserError(f"Cannot write to {path}: {reason}; make room there, or set COMPRESSION_HOME elsewhere.")


def write_whole(path: Path, content: BinaryIO) -> None:
    """Replace `path` by `content`, on disk when this returns; whatever happens, it never holds a part of it.

    Folders are made as needed; a UserError where the disk takes no more.
    """
    half = path.with_name(f"{path.name}.half")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with half.open("wb") as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


class Journal:
    """The records of one run, in order, on disk; held by one process at a time.

    Opening one that another process (or another `Journal` here) holds raises `Busy`. A journal is appended to
    by the run and read by its sender, from any thread.
    """

    def __init__(self, folder: Path, create: bool = True) -> None:
        self.folder = folder
        self._turn = threading.Lock()
        self._lock = self._file = -1
        new = os.O_CREAT if create else 0
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | new, 0o644)
            self._hold()  # before there is a journal: nobody finds one that nobody holds, and its run alive
            self._file = os.open(folder / JOURNAL, os.O_RDWR | os.O_APPEND | new, 0o644)
            self._cut_torn_line()
        except (BlockingIOError, FileNotFoundError):
            self.close()
            raise Busy from None
        except OSError as error:
            self.close()
            raise cannot_write(folder, error) from error

    def _hold(self) -> None:
        # flock, not lockf: it also keeps two journals of one process apart, and ends with the process.
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(self._lock).st_nlink:
            raise FileNotFoundError  # its holder has just removed it

    def _cut_torn_line(self) -> None:
        """Drop what a process killed in the middle of a write left behind the last whole line."""
        content = (self.folder / JOURNAL).read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def reserve(self) -> None:
        """Keep some room on the disk until `release`, so that a full disk still takes the last words."""
        write_whole(self.folder / RESERVE, BytesIO(bytes(RESERVE_BYTES)))

    def release(self) -> None:
        (self.folder / RESERVE).unlink(missing_ok=True)

    def append(self, records: Iterable[Record]) -> None:
        """Write `records`, all or none; a UserError where the disk takes no more."""
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        with self._turn:
            before = self._size()
            try:
                while data:  # a disk that is nearly full takes a part
                    data = data[os.write(self._file, data) :]
            except OSError as error:
                os.ftruncate(self._file, before)
                raise cannot_write(self.folder, error) from error

    def records(self, start: int = 0) -> Iterator[tuple[Record, int]]:
        """Each record from byte `start` on, with the byte where it ends."""
        with (self.folder / JOURNAL).open("rb") as file:
            file.seek(start)
            end = start
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written at this moment
                end += len(line)
                yield _parse(line), end

    def pending(self, limit: int) -> list[tuple[Record, int]]:
        """The next records to deliver, at most `limit`, safe on disk; empty when all have arrived."""
        with self._turn:  # an append that meets a full disk is taken back: nobody may have read it
            os.fsync(self._file)
            return list(itertools.islice(self.records(delivered_bytes(self.folder)), limit))

    def advance(self, position: int) -> None:
        """Everything before byte `position` has arrived."""
        write_whole(self.folder / DELIVERED, BytesIO(str(position).encode()))

    def refuse(self, record: Record, reason: str) -> None:
        """Set aside a record that nobody will take, with the reason."""
        with (self.folder / REFUSED).open("a") as file:
            file.write(json.dumps({"reason": reason, "record": record}) + "\n")

    def remove(self) -> None:
        """Everything was delivered: take the journal away, and let go of it."""
        for name in (JOURNAL, DELIVERED, RESERVE, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        self.close()

    def last(self) -> Record:
        """The last record; an empty one if there is none."""
        return deque((record for record, _ in self.records()), maxlen=1).pop() if self._size() else {}

    def _size(self) -> int:
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """Let go of the journal; closing it twice does no harm."""
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1


def _parse(line: bytes) -> Record:
    """A line that a failing disk spoilt is a record too: it gets refused and kept, and blocks nothing."""
    try:
        return json.loads(line)
    except ValueError:
        return {"unreadable": line.decode(errors="replace")}


def delivered_bytes(folder: Path) -> int:
    path = folder / DELIVERED
    return int(path.read_text()) if path.exists() else 0


def waiting(folder: Path) -> int:
    """How many records of the run in `folder` have not been delivered; readable while its process lives."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            file.seek(delivered_bytes(folder))
            return sum(line.endswith(b"\n") for line in file)
    except FileNotFoundError:
        return 0  # all of them were, and the journal is gone
