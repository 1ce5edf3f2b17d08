"""Runs that the web app starts: each a process of its own, which goes on when the app does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from compression.study.tables import now
from compression.study.texts import Refused
from compression.tracking.journal import home, write_error

SHOWN = 20_000  # bytes of a log's end


@dataclass(frozen=True)
class Launch:
    """A command that was started, in its folder: `command.json`, `log.txt`, and `exit` once it ended."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def command(self) -> list[str]:
        return json.loads((self.folder / "command.json").read_text())["words"]

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(json.loads((self.folder / "command.json").read_text())["at"])

    @property
    def log(self) -> str:
        """The end of what it printed."""
        content = (self.folder / "log.txt").read_bytes()[-SHOWN:]
        return content.decode(errors="replace")

    @property
    def state(self) -> str:
        """running, finished, failed, or lost: gone without a word (killed, or the machine went down)."""
        if (self.folder / "exit").exists():
            return "finished" if (self.folder / "exit").read_text() == "0" else "failed"
        return "running" if self._process() else "lost"

    def _process(self) -> psutil.Process | None:
        try:
            pid, born = json.loads((self.folder / "process.json").read_text())
            process = psutil.Process(pid)
            alive = process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if alive else None  # the number may have gone to another process since

    def stop(self) -> None:
        """Ask it to end as Ctrl-C does: its run ends as killed, with all it has said so far."""
        if process := self._process():
            os.killpg(process.pid, signal.SIGINT)


def folder_of(participant: str) -> Path:
    return home() / "launches" / participant


def of_person(participant: str) -> list[Launch]:
    """The newest first."""
    return [Launch(path.parent) for path in sorted(folder_of(participant).glob("*/command.json"), reverse=True)]


def find(participant: str, id: str) -> Launch:
    """The launch `id` of this participant; refused for anybody else's."""
    for launch in of_person(participant):
        if launch.id == id:
            return launch
    raise Refused("no_launch")


def start(participant: str, words: Sequence[str]) -> Launch:
    """Start `compression WORDS`; refused while another of this participant's runs."""
    folder = folder_of(participant)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            _hold(lock.fileno())
            if any(launch.state == "running" for launch in of_person(participant)):
                raise Refused("launch_running")
            return _started(folder / now().strftime("%Y%m%d-%H%M%S-%f"), participant, words)
    except OSError as error:
        raise write_error(folder, error) from error


def _hold(file: int) -> None:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)  # two clicks at once: the second waits, and is told that one runs


def _started(folder: Path, participant: str, words: Sequence[str]) -> Launch:
    folder.mkdir()
    (folder / "command.json").write_text(json.dumps({"words": list(words), "at": now().isoformat()}))
    environment = os.environ | {"COMPRESSION_PARTICIPANT": participant, "PYTHONUNBUFFERED": "1"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # it outlives the app, and is stopped with all its children
        )
    born = psutil.Process(process.pid).create_time()
    (folder / "process.json").write_text(json.dumps([process.pid, born]))
    return Launch(folder)


def main(folder: str, *words: str) -> None:
    """The started process: the command, and its exit code where the app finds it."""
    done = subprocess.run([sys.executable, "-c", "from compression.cli import main; main()", *words])
    (Path(folder) / "exit").write_text(str(done.returncode))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)  # for the command; this process stays to write down how it ended
    main(*sys.argv[1:])
