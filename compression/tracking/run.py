"""The run logger: params, metrics, tags, figures, tables and files of one MLflow run, sent through the outbox."""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.files import to_csv
from compression.tracking.journal import home, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

    from matplotlib.figure import Figure

    from compression.tracking.journal import Entry
    from compression.tracking.outbox import Outbox

NOTE_TAG = "mlflow.note.content"  # the tag that MLflow shows, as markdown, on the run's page
TIME_TAG = "participant.time_hours"  # how long the run's command took, h

# MLflow's limits, in characters: it rejects the whole request if one value is longer.
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 8000, 36


def notify(sentence: str) -> None:
    """Print a sentence for the user on the standard error stream; nobody hears it where the terminal was closed."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def now_ms() -> int:
    """Return the current time in ms since the epoch, as MLflow counts it."""
    return time.time_ns() // 1_000_000


def clean_text(text: str, substitute: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """Return `text` without what a server cannot store.

    That is NUL characters, which PostgreSQL rejects, and lone surrogates, which stand for the bytes of a file name or
    an argument that is not UTF-8, and have no place in JSON: `substitute` replaces those.
    """
    return re.sub("[\ud800-\udfff]", substitute, text.replace("\0", ""))


def clean_name(text: str) -> str:
    """Clean the name of a param, metric or tag: MLflow takes letters, digits and few signs."""
    return clean_text(text, "_")[:NAME_LENGTH]


def _truncate(text: str, length: int) -> str:
    """Clean `text`, and shorten it to `length` characters."""
    text = clean_text(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def runs_folder() -> Path:
    """Return the folder that holds the folders of all runs of this machine."""
    return home() / "runs"


def run_folder(run_id: str) -> Path:
    """Return the folder of a run on this machine: its checkpoints, and the artifacts not delivered yet."""
    return runs_folder() / run_id


class Run:
    """Logs to one MLflow run: a `compression.training.context.RunLogger`, with methods for whole runs besides.

    `open_child` starts a child run of a run, with a name and tags.

    Every method returns as soon as its entries are on disk, whatever the server does. Raises UserError, naming the
    folder, if the disk is full. `tags` and `logged_params` (names) are those that the run at the server has already.
    """

    def __init__(
        self,
        id: str,
        folder: Path,
        outbox: Outbox,
        tags: Mapping[str, str],
        logged_params: Collection[str],
        open_child: Callable[[Run, str, Mapping[str, str]], AbstractContextManager[Run]] | None = None,
    ) -> None:
        self.id = id
        self.folder = folder  # scratch: checkpoints live here
        self.artifact_folder = folder / "artifacts"  # with the paths that artifacts will have in MLflow
        self.warnings: list[str] = []
        self.curves: dict[str, list[tuple[int, float]]] = {}  # metric -> (step, value), of those logged with a step
        self.tags = dict(tags)
        self._outbox, self._note, self._open_child = outbox, tags.get(NOTE_TAG, ""), open_child
        self._logged_params = set(logged_params)
        self._nonfinite: set[str] = set()  # metrics that a warning was given for

    def child(self, name: str, tags: Mapping[str, str]) -> AbstractContextManager[Run]:
        """Open a child run."""
        assert self._open_child is not None
        return self._open_child(self, name, tags)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters as text. Skips those that the run has already, for example from `mlflow run -P`.

        MLflow does not let a parameter change.
        """
        new = {name: value for name, value in values.items() if name not in self._logged_params}
        self._logged_params.update(new)
        self._outbox.put(*({"param": clean_name(n), "value": _truncate(str(v), PARAM_LENGTH)} for n, v in new.items()))

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; `step` is the epoch of a curve's point. Warns of values that are not finite, once per name."""
        numbers = {clean_name(name): float(value) for name, value in values.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        if step is not None:
            for name, value in finite.items():
                self.curves.setdefault(name, []).append((step, value))
        stamp = {"step": step or 0, "at": now_ms()}
        self._outbox.put(*({"metric": name, "value": value} | stamp for name, value in finite.items()))
        for name in numbers.keys() - finite.keys() - self._nonfinite:
            self._nonfinite.add(name)
            at = "" if step is None else f" at step {step}"
            self.warn(f"{name} was {numbers[name]}{at}; only finite values are logged.")

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run; replaces its value."""
        self.tags[name] = str(value)
        self._outbox.put({"tag": clean_name(name), "value": _truncate(str(value), TAG_LENGTH)})

    def warn(self, sentence: str, echo: bool = True) -> None:
        """Show a warning in the tag `warning`, on the run's page and, with `echo`, on the terminal.

        Repeated warnings are shown once.
        """
        if sentence in self.warnings:
            return
        self.warnings.append(sentence)
        if echo:
            notify(f"warning: {sentence}")
        self.tag("warning", "\n".join(self.warnings))
        self._update_note_tag()

    def note(self, markdown: str) -> None:
        """Show `markdown` on the run's page, above the warnings, in place of an earlier note."""
        self._note = markdown
        self._update_note_tag()

    def _update_note_tag(self) -> None:
        parts = [self._note, *(f"**Warning:** {sentence}" for sentence in self.warnings)]
        self.tag(NOTE_TAG, "\n\n".join(part for part in parts if part))

    def figure(self, name: str, figure: Figure) -> None:
        """Log a figure as `figures/<name>.png`."""
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
        self._log_content(f"figures/{name}.png", image.getvalue())

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows as `<name>.csv`, with a column for every key, in order of first appearance."""
        self._log_content(f"{name}.csv", clean_text(to_csv(rows)).encode())

    def artifact(self, path: Path | str, to: str = "") -> None:
        """Log a file, or a folder with its content, in the artifact folder `to`.

        Files outside `artifact_folder` are copied there first: they may change before they have been delivered.
        """
        source = Path(path).absolute()
        if source.is_dir():
            self.artifacts(source, (Path(to) / source.name).as_posix())
        else:
            self._log_file(source, self.artifact_folder / to / source.name)

    def artifacts(self, folder: Path | str, to: str) -> None:
        """Log the content of `folder` as the artifact folder `to` (empty: the root)."""
        root = Path(folder).absolute()
        for source in sorted(path for path in root.rglob("*") if path.is_file()):
            self._log_file(source, self.artifact_folder / to / source.relative_to(root))

    def _log_file(self, source: Path, target: Path) -> None:
        name = clean_text(target.relative_to(self.artifact_folder).as_posix())
        if source != self.artifact_folder / name:
            with source.open("rb") as file:
                write_atomic(self.artifact_folder / name, file)
        self._outbox.put({"artifact": name})

    def _log_content(self, name: str, content: bytes) -> None:
        write_atomic(self.artifact_folder / clean_text(name), io.BytesIO(content))
        self._outbox.put({"artifact": clean_text(name)})

    def dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Log the dataset that the run used; `context` is the stage. MLflow keeps 36 characters of the digest."""
        texts = {"dataset": name, "source": source, "digest": digest[:DIGEST_LENGTH], "context": context}
        self._outbox.put({key: clean_text(text) for key, text in texts.items()})

    def end(self, status: str, failure: str, began: float) -> None:
        """Write the final entries: the sentence of a failure, how long the command took, the status.

        `began` is when the command started, in s since the epoch.
        """
        self._outbox.journal.release_space()  # the final entries fit even on a full disk
        if failure:
            self.note("\n\n".join(part for part in (failure, self._note) if part))
        self._outbox.put(*final_entries(status, began, now_ms()))


def final_entries(status: str, began: float, now: int) -> list[Entry]:
    """Return the entries that every run ends with; `began` in s and `now` in ms since the epoch."""
    hours = max(0.0, now / 1000 - began) / 3600
    return [{"tag": TIME_TAG, "value": f"{hours:.6f}"}, {"end": status, "at": now}]
