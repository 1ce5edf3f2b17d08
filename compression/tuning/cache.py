"""A cache of the models that trials share: the same steps applied to the same weights are computed once.

The key of an entry is a digest of all that decides the result: the initial weights, the data, every field of every
step, the seed, the machine, and the source code of this package.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compression
from compression import methods, models, params, tracking
from compression.files import file_sha256
from compression.models import storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.methods.base import Method
    from compression.runs.job import Job

MAX_BYTES = 5e9  # above this, the least recently used entries are deleted
MUTABLE_SCHEMES = ("models:/",)  # URIs whose content may change: an alias of the registry moves


@dataclass(frozen=True)
class StepCache:
    """Models after the first steps of a recipe, on this machine's disk."""

    folder: Path
    start: str  # digest of everything but the steps
    like: nn.Module | None = None  # the model before the steps, where it is of somebody's own code

    def find(self, steps: Sequence[Method]) -> tuple[nn.Module, float] | None:
        """Return the model after `steps` and how long they took (s), or None if there is no entry."""
        entry = self._entry_folder(steps)
        if entry is None or not entry.exists():
            return None
        entry.touch()  # its time of change is that of its last use: see `evict`
        return storage.load(entry, self.like), storage.read_metadata(entry)["seconds"]

    def save(self, steps: Sequence[Method], model: nn.Module, seconds: float) -> None:
        """Store the model after `steps`, which took `seconds`."""
        entry = self._entry_folder(steps)
        if entry is None or entry.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            written = storage.save(model, Path(scratch) / "model", {"seconds": seconds})
            try:
                written.rename(entry)
            except OSError:
                if not entry.exists():  # if it does, another worker has just saved the same model
                    raise
        evict(self.folder)

    def _entry_folder(self, steps: Sequence[Method]) -> Path | None:
        keys = [step_key(step) for step in steps]
        return None if None in keys else self.folder / digest([self.start, keys])


def open_cache(job: Job, original: nn.Module) -> StepCache:
    """Return the cache for steps applied to `original` in `job`."""
    facts = job.machine.facts()
    start = [job.task.name, job.task.digest, job.settings.seed, facts, source_digest(), weights_digest(original)]
    is_own = models.spec_of(original)["builder"] == models.OWN
    return StepCache(tracking.home() / "steps", digest(start), original if is_own else None)


def step_key(step: Method) -> list[Any] | None:
    """Return what identifies a step: method, fields, and digests of the files they name.

    None if a field names something that may change under its name: such a step is not cached.
    """
    texts = params.texts(step)
    items = {name: params.items(text, slashes=True) for name, text in texts.items()}
    if any(item.startswith(MUTABLE_SCHEMES) for given in items.values() for item in given):
        return None
    files = {name: [files_digest(item) for item in given] for name, given in items.items()}
    return [methods.name_of(step), texts, files]


def files_digest(text: str) -> str:
    """Return a digest of the file or folder that `text` names; empty if it names none."""
    path = Path(text)
    if not text or not path.exists():
        return ""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(p), file_sha256(p)] for p in files])


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@functools.cache
def source_digest() -> str:
    """Return a digest of this package's source code."""
    return files_digest(str(Path(compression.__file__).parent))


def digest(content: Any) -> str:
    """Return the SHA-256 of `content` as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def evict(folder: Path) -> None:
    """Delete the least recently used entries until the others take at most MAX_BYTES."""
    complete = [p for p in folder.iterdir() if (p / storage.STRUCTURE_FILE).exists()]
    entries = sorted(complete, key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in entries}
    while sum(sizes.values()) > MAX_BYTES:
        oldest = next(iter(sizes))
        del sizes[oldest]
        shutil.rmtree(oldest, ignore_errors=True)  # another worker may be deleting it too
