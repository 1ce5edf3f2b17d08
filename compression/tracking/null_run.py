"""The run logger of helper processes in multi-GPU training: it logs nothing."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.tracking.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager


class NullRun(Run):
    """A Run that discards everything: only the main process of `accelerate launch` logs."""

    def __init__(self, folder: Path) -> None:
        self.id, self.folder, self.artifact_folder = "", folder, folder / "artifacts"
        self.warnings, self.curves, self.tags = [], {}, {}

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[NullRun]:
        """Yield a null run whose scratch folder lasts as long as the block."""
        with tempfile.TemporaryDirectory() as folder:
            yield cls(Path(folder))

    def child(self, name: str, tags: Mapping[str, str]) -> AbstractContextManager[NullRun]:  # noqa: ARG002
        """Open a child that discards everything, too."""
        return NullRun.start()

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    params = metrics = tag = warn = note = figure = table = artifact = artifacts = dataset = end = _ignore
