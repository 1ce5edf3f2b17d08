"""A cache of the models that trials share: the same steps applied to the same weights are computed once.

The key of an entry is a digest of all that decides the result: the initial weights, the data, every field of every
step, the seed, the machine, and the source code of this package.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import compression
from compression import methods, models, params, tracking
from compression.errors import UserError, first_line
from compression.files import file_sha256, read_text
from compression.models import hub, storage
from compression.nn.raw import raw_bytes
from compression.runs import baseline, loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    from compression.methods.base import Method
    from compression.runs.job import Job

MAX_BYTES = 5e9  # above this, the least recently used entries are deleted
MUTABLE_SCHEMES = ("models:/",)  # URIs whose content may change: an alias of the registry moves
TEACHERS = ("teacher", "teachers")  # fields whose models are trained; any other model of the lab begins untrained
CHECKSUMS_FILE, MAX_CHECKSUMS_BYTES = "checksums.json", 2**16
SCRATCH_AGE = 24 * 3600.0  # seconds after which a folder of another machine's worker counts as abandoned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModels:
    """The trained models behind names of the lab, which are the same for all trials of a worker."""

    job: Job
    uris: dict[str, str] = field(default_factory=dict)  # by name

    def find(self, name: str) -> str:
        """Return the URI of the trained model `name`; empty if there is none yet."""
        if name not in self.uris and (uri := baseline.find(self.job, name)):
            self.uris[name] = uri
        return self.uris.get(name, "")

    def load(self, job: Job, spec: str) -> nn.Module:
        """Load the model `spec`; one that a name stands for is trained in `job` if there is none yet."""
        if spec in models.MODELS and not self.find(spec):
            self.uris[spec] = baseline.resolve(job, spec)
        return loading.open_model(self.uris.get(spec, spec), job.task)


def _nothing_trained(name: str) -> str:  # noqa: ARG001 - in the place of `TrainedModels.find`
    return ""


@dataclass(frozen=True)
class StepCache:
    """Models after the first steps of a recipe, on this machine's disk. Without room there, nothing is kept."""

    folder: Path
    start: str  # digest of everything but the steps
    like: nn.Module | None = None  # the model before the steps, where it is of somebody's own code
    trained: Callable[[str], str] = _nothing_trained  # the URI of the trained model behind a name

    def find(self, steps: Sequence[Method]) -> tuple[nn.Module, float] | None:
        """Return the model after `steps` and how long they took (s), or None if there is no whole entry."""
        entry = self._entry_folder(steps)
        if entry is None or not entry.exists():
            return None
        try:
            _require_intact(entry)
            os.utime(entry)  # its time of change is that of its last use: see `evict`
            return storage.load(entry, self.like), float(storage.read_metadata(entry)["seconds"])
        except (OSError, ValueError, UserError) as error:
            log.warning("The cached %s is damaged and is made again (%s).", entry, first_line(error))
            _remove(entry)
            return None

    def save(self, steps: Sequence[Method], model: nn.Module, seconds: float) -> None:
        """Store the model after `steps`, which took `seconds`. Only warns if that fails."""
        entry = self._entry_folder(steps)
        if entry is None or entry.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=_scratch_prefix()) as scratch:
                written = storage.save(model, Path(scratch) / "model", {"seconds": seconds})
                (written / CHECKSUMS_FILE).write_text(json.dumps(_checksums(written)), encoding="utf-8")
                try:
                    # A folder is renamed whole, so that another worker finds all of an entry or none.
                    written.rename(entry)
                except OSError:
                    if not entry.exists():  # if it does, another worker has just saved the same model
                        raise
            with contextlib.suppress(FileNotFoundError):  # another worker deletes as well
                evict(self.folder)
        except (OSError, UserError) as error:
            log.warning("Could not keep a step in %s (%s): other trials repeat it.", self.folder, first_line(error))

    def _entry_folder(self, steps: Sequence[Method]) -> Path | None:
        keys = [step_key(step, self.trained) for step in steps]
        return None if None in keys else self.folder / digest([self.start, keys])


def _checksums(entry: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of an entry but that of the checksums."""
    return {file.name: file_sha256(file) for file in sorted(entry.iterdir()) if file.name != CHECKSUMS_FILE}


def _require_intact(entry: Path) -> None:
    """Raise OSError or ValueError unless all files of an entry are as they were written."""
    if json.loads(read_text(entry / CHECKSUMS_FILE, MAX_CHECKSUMS_BYTES)) != _checksums(entry):
        raise ValueError("its files are not those that were written")


def _remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; another worker may be deleting it too."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def open_cache(job: Job, original: nn.Module, trained: TrainedModels) -> StepCache:
    """Return the cache for steps applied to `original` in `job`."""
    # Versions, device and threads: sums in another order give other weights, and a cached step must give the same.
    facts = job.machine.facts()
    code = [*map(type, original.modules()), job.task.loss, job.task.compute_metrics]
    start = [job.task.name, job.task.digest, job.settings.seed, facts, source_digest(), code_digest(code)]
    start += [weights_digest(original)]
    is_own = models.spec_of(original)["builder"] == models.OWN
    return StepCache(tracking.home() / "steps", digest(start), original if is_own else None, trained.find)


def step_key(step: Method, trained: Callable[[str], str] = _nothing_trained) -> list[Any] | None:
    """Return what identifies a step: method, fields, and the content of the models and files that they name.

    `trained` gives the URI of the trained model behind a name. None if a field names something that may change
    unnoticed: such a step is not cached.
    """
    # All fields, so that a default which somebody writes out is the same step.
    texts = params.texts(step)
    content = []
    for name, known in params.fields(type(step)).items():
        for item in params.items(texts[name], slashes=True):
            # `runs:/` is cached: the artifacts of a run do not change.
            if item.startswith(MUTABLE_SCHEMES):
                return None
            found: str | None = files_digest(item)
            if not found and known.kind.slashes and not item.startswith("runs:/"):
                found = _model_identity(item, trained if name in TEACHERS else _nothing_trained)
            if found is None:
                return None
            content.append([name, item, found])
    return [methods.name_of(step), code_digest([type(step)]), texts, content]


def _model_identity(name: str, trained: Callable[[str], str]) -> str | None:
    """Return what a model's name stands for now: a run, or a revision on the hub; None for one not downloaded yet."""
    return trained(name) if name in models.MODELS else hub.cached_revision(name)


def files_digest(text: str) -> str:
    """Return a digest of the file or folder that `text` names; empty if it names none."""
    path = Path(text)
    if not text or not path.exists():
        return ""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(p), file_sha256(p)] for p in files])


def code_digest(objects: Iterable[Any]) -> str:
    """Return a digest of the files in which classes and functions are defined, which may be of somebody's own code."""
    modules = {sys.modules.get(getattr(each, "__module__", "")) for each in objects}
    files = {file for module in modules if (file := getattr(module, "__file__", None))}
    return digest(sorted(files_digest(file) for file in files))


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + raw_bytes(tensor).numpy().tobytes())
    return total.hexdigest()


@functools.cache
def source_digest() -> str:
    """Return a digest of this package's source code."""
    return files_digest(str(Path(compression.__file__).parent))


def digest(content: Any) -> str:
    """Return the SHA-256 of `content` as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def evict(folder: Path) -> None:
    """Delete what killed workers left half, and the least recently used entries until the others take MAX_BYTES."""
    for path in folder.iterdir():
        if _is_abandoned(path):
            _remove(path)
    complete = [p for p in folder.iterdir() if (p / storage.STRUCTURE_FILE).exists()]
    entries = sorted(complete, key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in entries}
    while sum(sizes.values()) > MAX_BYTES:
        oldest = next(iter(sizes))
        del sizes[oldest]
        _remove(oldest)


def _scratch_prefix() -> str:
    """Return how the names of this process's scratch folders begin."""
    return f".half~{os.getpid()}~{socket.gethostname()}~"


def _is_abandoned(path: Path) -> bool:
    """Whether `path` is the scratch folder of a worker that is gone: of another machine, one that is a day old."""
    if (path / storage.STRUCTURE_FILE).exists():
        return False
    changed = path.stat().st_mtime
    if path.name.startswith(".half~") and f"~{socket.gethostname()}~" in path.name:
        number = int(path.name.split("~")[1])
        try:
            return bool(psutil.Process(number).create_time() > changed + 1)  # the number was given to another process
        except psutil.NoSuchProcess:
            return True
    return time.time() - changed > SCRATCH_AGE
