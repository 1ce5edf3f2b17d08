"""What a run says: parameters, metrics, tags, pictures, tables, files. All of it goes through the outbox."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.tracking.journal import home, write_whole
from compression.tracking.outbox import Outbox

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = "mlflow.note.content"  # the tag that MLflow shows, as markdown, on the run's page
TIME = "participant.time_hours"

# MLflow's own limits: what is longer would be refused as a whole.
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 8000, 36


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _cut(text: str, length: int) -> str:
    """At most `length` characters of a value, and no NUL, which PostgreSQL refuses."""
    text = text.replace("\0", "")
    return text if len(text) <= length else text[: length - 1] + "…"


def runs_folder() -> Path:
    return home() / "runs"


def folder_of(run_id: str) -> Path:
    """The folder of a run on this machine: its checkpoints, and the artifacts not delivered yet."""
    return runs_folder() / run_id


class Run:
    """A run in MLflow, as far as the lab writes to it: a `compression.context.Record` and a little more.

    Every call returns as soon as its records are on the disk. Where the disk takes no more, it raises a
    UserError naming the folder.
    """

    def __init__(self, id: str, folder: Path, outbox: Outbox, seen: Mapping[str, str], known: Collection[str]) -> None:
        self.id = id
        self.folder = folder  # scratch: checkpoints live here
        self.outgoing = folder / "artifacts"  # as they will be in MLflow
        self.warnings: list[str] = []
        self.curves: dict[str, list[tuple[int, float]]] = {}  # of what was logged with a step: (step, value)
        self.tags_seen = dict(seen)
        self._outbox, self._note, self._known = outbox, seen.get(NOTE, ""), set(known)
        self._not_finite: set[str] = set()

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, as text; a name the run has already keeps its value (`mlflow run -P` was first)."""
        new = {name: value for name, value in values.items() if name not in self._known}
        self._known.update(new)
        self._outbox.put(*({"param": n[:NAME_LENGTH], "value": _cut(str(v), PARAM_LENGTH)} for n, v in new.items()))

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log figures. One that is not finite is no figure: a warning says so in its place."""
        figures = {name: float(value) for name, value in values.items()}
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        if step is not None:
            for name, value in finite.items():
                self.curves.setdefault(name, []).append((step, value))
        stamp = {"step": step or 0, "at": milliseconds()}
        self._outbox.put(*({"metric": name, "value": value} | stamp for name, value in finite.items()))
        for name in figures.keys() - finite.keys() - self._not_finite:
            self._not_finite.add(name)
            at = "" if step is None else f" at step {step}"
            self.warn(f"{name} was {figures[name]}{at}; only finite values are logged.")

    def tag(self, name: str, value: str) -> None:
        self.tags_seen[name] = str(value)
        self._outbox.put({"tag": name[:NAME_LENGTH], "value": _cut(str(value), TAG_LENGTH)})

    def warn(self, sentence: str, aloud: bool = True) -> None:
        """Say it in the tag `warning`, on the run's page and, `aloud`, on the terminal; a sentence only once."""
        if sentence in self.warnings:
            return
        self.warnings.append(sentence)
        if aloud:
            say(f"warning: {sentence}")
        self.tag("warning", "\n".join(self.warnings))
        self._show_note()

    def note(self, markdown: str) -> None:
        """Show `markdown` on the run's page, above the warnings; it replaces the note before it."""
        self._note = markdown
        self._show_note()

    def _show_note(self) -> None:
        parts = [self._note, *(f"**Warning:** {sentence}" for sentence in self.warnings)]
        self.tag(NOTE, "\n\n".join(part for part in parts if part))

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a picture as `figures/<name>.png`."""
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120, bbox_inches="tight")
        self._keep(f"figures/{name}.png", picture.getvalue())

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep rows as `<name>.csv`; a column for every key, in the order they come up."""
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._keep(f"{name}.csv", text.getvalue().encode())

    def artifact(self, path: Path | str, to: str = "") -> None:
        """Send a file, or a folder with all that is in it, into the artifact folder `to`.

        The run keeps a copy until it has arrived; of what lies in `run.outgoing` already, no other.
        """
        source = Path(path).absolute()
        if source.is_dir():
            self.artifacts(source, (Path(to) / source.name).as_posix())
        else:
            self._take(source, self.outgoing / to / source.name)

    def artifacts(self, folder: Path | str, to: str) -> None:
        """Send everything in `folder` as the artifact folder `to` (empty: at the top)."""
        root = Path(folder).absolute()
        for source in sorted(path for path in root.rglob("*") if path.is_file()):
            self._take(source, self.outgoing / to / source.relative_to(root))

    def _take(self, source: Path, target: Path) -> None:
        if source != target:
            with source.open("rb") as file:
                write_whole(target, file)
        self._outbox.put({"artifact": target.relative_to(self.outgoing).as_posix()})

    def _keep(self, name: str, content: bytes) -> None:
        write_whole(self.outgoing / name, io.BytesIO(content))
        self._outbox.put({"artifact": name})

    def dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Say which data the run used, and in which stage; MLflow keeps 36 characters of the digest."""
        self._outbox.put({"dataset": name, "source": source, "digest": digest[:DIGEST_LENGTH], "context": context})

    def end(self, status: str, failure: str, began: float) -> None:
        """The last words: what went wrong, how long the command took (`began`: its start), the status."""
        self._outbox.journal.release()  # a full disk has room for them
        if failure:
            self.note("\n\n".join(part for part in (failure, self._note) if part))
        self._outbox.put(*last_words(status, began, milliseconds()))


def last_words(status: str, began: float, now: int) -> list[dict[str, Any]]:
    """The records every run ends with; `began` in seconds and `now` in milliseconds since the epoch."""
    hours = max(0.0, now / 1000 - began) / 3600
    return [{"tag": TIME, "value": f"{hours:.6f}"}, {"end": status, "at": now}]
