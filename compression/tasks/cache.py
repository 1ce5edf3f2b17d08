"""Tensors that took long to make, kept as safetensors files; a file that is not intact is made again."""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

Tensors = dict[str, Tensor]
log = logging.getLogger(__name__)


def folder() -> Path:
    """COMPRESSION_CACHE, or a folder in the user's cache."""
    named = os.environ.get("COMPRESSION_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "model-compression-lab"


def cached(key: str, make: Callable[[], Tensors]) -> Tensors:
    """What `make` returns, from the cache if it holds an intact copy under `key`."""
    file = folder() / f"{key}.safetensors"
    tensors = _read(file)
    if tensors is None:
        tensors = make()
        _write(tensors, file)
    return tensors


def _read(file: Path) -> Tensors | None:
    """The tensors of an intact file; None if there is none."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - a safetensors file, no dict
            intact = (opened.metadata() or {}) == _checksums(tensors)
    except (OSError, SafetensorError) as error:
        log.warning("The cached %s cannot be read and is made again: %s", file, error)
        return None
    if not intact:
        log.warning("The cached %s is damaged and is made again.", file)
    return tensors if intact else None


def _write(tensors: Tensors, file: Path) -> None:
    """Under another name first, so that nobody ever reads half a file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            half = Path(scratch) / file.name
            save_file(tensors, half, _checksums(tensors))
            half.replace(file)
    except (OSError, SafetensorError) as error:  # a run can do without: the disk may be full or read-only
        log.warning("Could not keep a copy in %s (%s); set COMPRESSION_CACHE to a folder.", file.parent, error)


def _checksums(tensors: Tensors) -> dict[str, str]:
    return {name: f"{zlib.crc32(t.numpy().tobytes()):08x}" for name, t in tensors.items()}
