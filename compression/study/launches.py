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
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from compression.study.tables import utc_now
from compression.study.texts import StudyError
from compression.tracking.journal import home, write_error

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        return json.loads((self.folder / name).read_text())

    @property
    def command(self) -> list[str]:
        """The arguments of `compression`."""
        return list(self._read_json("command.json")["words"])

    @property
    def started(self) -> datetime:
        """When it was started."""
        return datetime.fromisoformat(self._read_json("command.json")["at"])

    @property
    def log(self) -> str:
        """The last LOG_TAIL_BYTES of its output."""
        return (self.folder / "log.txt").read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    @property
    def state(self) -> str:
        """running, finished, failed, or lost: it ended without an exit code (killed, or the machine was shut down)."""
        if (self.folder / "exit").exists():
            return "finished" if (self.folder / "exit").read_text() == "0" else "failed"
        return "running" if self._process() else "lost"

    def _process(self) -> psutil.Process | None:
        """Return its process if it is alive; the creation time tells it from a later process of the same id."""
        try:
            pid, created = self._read_json("process.json")
            process = psutil.Process(pid)
            is_alive = process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if is_alive else None

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does: its run ends as KILLED and keeps what it has logged."""
        if process := self._process():
            os.killpg(process.pid, signal.SIGINT)


def launch_folder(participant_id: str) -> Path:
    """Return the folder of a participant's launches."""
    return home() / "launches" / participant_id


def list_launches(participant_id: str) -> list[Launch]:
    """Return a participant's launches, newest first."""
    commands = sorted(launch_folder(participant_id).glob("*/command.json"), reverse=True)
    return [Launch(path.parent) for path in commands]


def find(participant_id: str, launch_id: str) -> Launch:
    """Return the launch `launch_id` of this participant. Raises StudyError if it is not one of theirs."""
    for launch in list_launches(participant_id):
        if launch.id == launch_id:
            return launch
    raise StudyError("no_launch")


def start(participant_id: str, arguments: Sequence[str]) -> Launch:
    """Start `compression ARGUMENTS` in the background.

    Raises StudyError while another launch of this participant is running, UserError if the folder is not writable.
    """
    import fcntl  # not on Windows, where the rest of this package works

    folder = launch_folder(participant_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)  # of two simultaneous clicks, the second finds a running launch
            if any(launch.state == "running" for launch in list_launches(participant_id)):
                raise StudyError("launch_running")
            return _spawn(folder / utc_now().strftime("%Y%m%d-%H%M%S-%f"), participant_id, arguments)
    except OSError as error:
        raise write_error(folder, error) from error


def _spawn(folder: Path, participant_id: str, arguments: Sequence[str]) -> Launch:
    folder.mkdir()
    (folder / "command.json").write_text(json.dumps({"words": list(arguments), "at": utc_now().isoformat()}))
    environment = os.environ | {"COMPRESSION_PARTICIPANT": participant_id, "PYTHONUNBUFFERED": "1"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # it outlives the app, and is stopped together with its child processes
        )
    created = psutil.Process(process.pid).create_time()
    (folder / "process.json").write_text(json.dumps([process.pid, created]))
    return Launch(folder)


def main(folder: str, *arguments: str) -> None:
    """Run the command in the started process, and write its exit code for the app."""
    done = subprocess.run([sys.executable, "-c", "from compression.cli import main; main()", *arguments])
    (Path(folder) / "exit").write_text(str(done.returncode))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)  # meant for the command; this process has to write its exit code
    main(*sys.argv[1:])
