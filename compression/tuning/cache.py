"""What trials share: the model after the same steps from the same start, computed once.

An entry is found by all that decides it: the weights it began from, the data, every field of every step, the seed, the
machine's way of computing, and this package's own source. Nothing is ever looked up by a name alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import compression
from compression import methods, params, tracking
from compression.methods.base import Method
from compression.models import storage
from compression.runs.job import Job

MAX_BYTES = 5e9  # bytes; beyond them the oldest entries go
MUTABLE_SCHEMES = ("models:/",)  # addresses whose content may change while their text stays


@dataclass(frozen=True)
class StepCache:
    """Models after a number of steps, on this machine's disk."""

    folder: Path
    start: str  # a digest of everything but the steps

    def find(self, steps: Sequence[Method]) -> tuple[nn.Module, float] | None:
        """The model after `steps` and the seconds they had taken, or None."""
        place = self._place(steps)
        if place is None or not place.exists():
            return None
        place.touch()
        return storage.load(place), storage.about(place)["seconds"]

    def keep(self, steps: Sequence[Method], model: nn.Module, seconds: float) -> None:
        """Remember the model after `steps`."""
        place = self._place(steps)
        if place is None or place.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            made = storage.save(model, Path(scratch) / "model", {"seconds": seconds})
            try:
                made.rename(place)
            except OSError:
                if not place.exists():  # else another worker was first, with the same
                    raise
        evict(self.folder)

    def _place(self, steps: Sequence[Method]) -> Path | None:
        said = [step_key(step) for step in steps]
        if any(part is None for part in said):
            return None
        return self.folder / digest([self.start, said])


def open_cache(job: Job, original: nn.Module) -> StepCache:
    """The cache of what begins at `original` in `job`."""
    facts = job.machine.facts()
    start = [job.task.name, job.task.digest, job.settings.seed, facts, source_digest(), weights_digest(original)]
    return StepCache(tracking.home() / "steps", digest(start))


def step_key(step: Method) -> list[Any] | None:
    """All that a step is; None where it names something that may change under its name."""
    texts = params.texts(step)
    items = {name: params.items(text, slashes=True) for name, text in texts.items()}
    if any(item.startswith(MUTABLE_SCHEMES) for given in items.values() for item in given):
        return None
    return [methods.name_of(step), texts, {name: [files_digest(item) for item in given] for name, given in items.items()}]


def files_digest(text: str) -> str:
    """A digest of the file or folder that `text` names; nothing for other texts."""
    path = Path(text)
    if not text or not path.exists():
        return ""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(p), hashlib.sha256(p.read_bytes()).hexdigest()] for p in found])


def weights_digest(model: nn.Module) -> str:
    """A digest of a model's state."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@functools.cache
def source_digest() -> str:
    """A digest of this package's source."""
    return files_digest(str(Path(compression.__file__).parent))


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def evict(folder: Path) -> None:
    """Remove the entries that were used least recently, until the rest takes no more than ROOM."""
    whole = [p for p in folder.iterdir() if (p / storage.STRUCTURE).exists()]
    whole = [p for p in folder.iterdir() if (p / storage.STRUCTURE).exists()]
    entries = sorted(whole, key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in entries}
    while sum(sizes.values()) > MAX_BYTES:
        oldest = next(iter(sizes))
        del sizes[oldest]
        shutil.rmtree(oldest, ignore_errors=True)  # another worker may be removing it too
