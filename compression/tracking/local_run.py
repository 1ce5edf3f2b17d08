"""A run that is tracked nowhere: what it logs stays in a folder."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from typing import TYPE_CHECKING, Any, cast

from compression.tracking.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from compression.tracking.journal import Entry
    from compression.tracking.outbox import Outbox


class CompressionWarning(UserWarning):
    """What a run that is tracked nowhere warns of."""


class _Discard:
    """In place of an outbox: nothing is sent."""

    def put(self, *entries: Entry) -> None:
        """Discard the entries."""


class LocalRun(Run):
    """A Run that keeps figures, tables and files in `folder`, and the values of metrics and params in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.name, folder, cast("Outbox", _Discard()), {}, ())
        self.logged: dict[str, Any] = {}  # the last values of metrics, and params
        self.artifact_folder.mkdir(parents=True, exist_ok=True)

    def params(self, values: Mapping[str, Any]) -> None:
        """Keep parameters."""
        self.logged.update(values)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep metrics, and the curves of those with a `step`."""
        super().metrics(values, step)
        self.logged.update(values)

    def warn(self, sentence: str, echo: bool = True) -> None:
        """Keep the warning and, with `echo`, issue it as a CompressionWarning."""
        if sentence not in self.warnings:
            super().warn(sentence, echo=False)
            if echo:
                warnings.warn(sentence, CompressionWarning, stacklevel=2)

    @contextlib.contextmanager
    def child(self, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """A run in a folder of its own within this one's."""
        folder = self.folder / "children" / f"{len(list(self.folder.glob('children/*')))}-{name.replace('/', '-')}"
        child = LocalRun(folder)
        child.tags.update(tags)
        try:
            yield child
        finally:
            shutil.rmtree(folder / "onnx", ignore_errors=True)  # of a measurement, which is over
