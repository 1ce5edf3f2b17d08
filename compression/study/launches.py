"""Runs that the web app starts: each is a process of its own, which continues when the app ends.

The state of a launch is in its folder alone, so that any process of the app can read it:

- `command.json`: the arguments of `compression`, and when it was started
- `process.json`: process id and creation time
- `log.txt`: its output
- `exit`: its exit code, once it has ended
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from compression.study.private import make_private_folder
from compression.study.tables import utc_now
from compression.study.texts import StudyError
from compression.tracking.journal import home, write_atomic, write_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOG_TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Launch:
    """A started command, by its folder."""

    folder: Path

    @property
    def id(self) -> str:
        """The name of its folder, which is unique for the participant."""
        return self.folder.name

    def _read_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @property
    def command(self) -> list[str]:
        """The arguments of `compression`."""
        return list(self._read_json("command.json")["words"])

    @property
    def started(self) -> datetime:
        """When it was started."""
        return datetime.fromisoformat(self._read_json("command.json")["at"])

    @property
    def is_whole(self) -> bool:
        """Whether its command can be read: on a full disk, version 0.1 left half of it, and started nothing."""
        try:
            return bool(self.command and self.started)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def log(self) -> str:
        """The last LOG_TAIL_BYTES of its output; empty if there is none."""
        try:
            with (self.folder / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                return file.read(LOG_TAIL_BYTES).decode(errors="replace")  # the cut may fall within a character
        except FileNotFoundError:
            return ""

    @property
    def state(self) -> str:
        """running, finished, failed, or lost: it ended without an exit code (killed, or the machine was shut down)."""
        if (self.folder / "exit").exists():
            return "finished" if (self.folder / "exit").read_text(encoding="utf-8") == "0" else "failed"
        return "running" if self._process() else "lost"

    def _process(self) -> psutil.Process | None:
        """Return its process if it is alive; the creation time tells it from a later process of the same id."""
        try:
            pid, created = self._read_json("process.json")
            process = psutil.Process(pid)
            # The app waits for none of its launches, so one that ended stays a zombie until the app itself ends.
            is_alive = process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
        # No file, or half of one: the app was killed between the start and the writing of it.
        except (OSError, ValueError, TypeError, psutil.Error):
            return None
        return process if is_alive else None

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does: its run ends as KILLED and keeps what it has logged."""
        if process := self._process():
            # With its session it leads a group of its own, of the same number: workers that it started are in it.
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGINT)


def launch_folder(participant_id: str) -> Path:
    """Return the folder of a participant's launches."""
    return home() / "launches" / participant_id


def list_launches(participant_id: str) -> list[Launch]:
    """Return a participant's launches, newest first."""
    # Folders are named by their time, to the microsecond: the order of names is that of starts.
    commands = sorted(launch_folder(participant_id).glob("*/command.json"), reverse=True)
    return [launch for path in commands if (launch := Launch(path.parent)).is_whole]


def find(participant_id: str, launch_id: str) -> Launch:
    """Return the launch `launch_id` of this participant. Raises StudyError if it is not one of theirs."""
    for launch in list_launches(participant_id):
        if launch.id == launch_id:
            return launch
    raise StudyError("no_launch")


@contextmanager
def locked(participant_id: str, name: str, wait: bool = True) -> Iterator[Path]:
    """Yield the participant's folder, created if need be, while nobody else has its lock `name`.

    Raises BlockingIOError if somebody has and `wait` is false, UserError if the folder cannot be written.
    """
    import fcntl  # not on Windows, where the rest of this package works

    folder = launch_folder(participant_id)
    try:
        make_private_folder(folder.parent)
        make_private_folder(folder)
        with (folder / name).open("w", encoding="utf-8") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield folder
    except BlockingIOError:
        raise
    except OSError as error:
        raise write_error(folder, error) from error


def start(participant_id: str, arguments: Sequence[str], **environment: str) -> Launch:
    """Start `compression ARGUMENTS` in the background, with the variables of `environment` besides the app's own.

    Raises StudyError while another launch of this participant is running, UserError if the folder is not writable.
    """
    with locked(participant_id, "lock") as folder:  # of two simultaneous clicks, the second finds a running launch
        if any(launch.state == "running" for launch in list_launches(participant_id)):
            raise StudyError("launch_running")
        # Unbuffered: the page shows the log while it grows.
        own = {"COMPRESSION_PARTICIPANT": participant_id, "PYTHONUNBUFFERED": "1"}
        return _spawn(folder / utc_now().strftime("%Y%m%d-%H%M%S-%f"), arguments, os.environ | environment | own)


def _spawn(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Launch:
    """Start the process, and leave neither it nor the folder if that cannot be written whole."""
    with ExitStack() as undo:
        folder.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        _write_json(folder / "command.json", {"words": list(arguments), "at": utc_now().isoformat()})
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                umask=0o077,  # its run's folder is not for other users of this machine
                start_new_session=True,  # it outlives the app, and is stopped together with its child processes
            )
        undo.callback(os.killpg, process.pid, signal.SIGKILL)
        _write_json(folder / "process.json", [process.pid, psutil.Process(process.pid).create_time()])
        undo.pop_all()
    return Launch(folder)


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, BytesIO(json.dumps(content).encode()))


def main(folder: str, *arguments: str) -> None:
    """Run the command in the started process, and write its exit code for the app."""
    done = subprocess.run([sys.executable, "-c", "from compression.cli import main; main()", *arguments])
    _write_json(Path(folder) / "exit", done.returncode)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)  # meant for the command; this process has to write its exit code
    main(*sys.argv[1:])
