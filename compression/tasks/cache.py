"""A cache of tensors that take long to make, as safetensors files; a damaged file is made again."""

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


def cache_folder() -> Path:
    """Return the folder COMPRESSION_CACHE or, if it is not set, one in the user's cache."""
    folder = os.environ.get("COMPRESSION_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "model-compression-lab"


def cached(key: str, make: Callable[[], Tensors]) -> Tensors:
    """Return the tensors stored under `key`, or those that `make` returns, and store them."""
    file = cache_folder() / f"{key}.safetensors"
    tensors = _read(file)
    if tensors is None:
        tensors = make()
        _write(tensors, file)
    return tensors


def _read(file: Path) -> Tensors | None:
    """Return the tensors of a file; None if there is no such file or it is damaged."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - a safetensors file, no dict
            is_intact = (opened.metadata() or {}) == _checksums(tensors)
    except (OSError, SafetensorError) as error:
        log.warning("The cached %s cannot be read and is made again: %s", file, error)
        return None
    if not is_intact:
        log.warning("The cached %s is damaged and is made again.", file)
    return tensors if is_intact else None


def _write(tensors: Tensors, file: Path) -> None:
    """Write a temporary file and rename it, so that no process reads half a file. Only warns if that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:  # several processes may write the same file
            temporary = Path(scratch) / file.name
            save_file(tensors, temporary, _checksums(tensors))
            temporary.replace(file)
    except (OSError, SafetensorError) as error:  # the disk may be full or read-only: runs work without a cache
        log.warning("Could not keep a copy in %s (%s); set COMPRESSION_CACHE to a folder.", file.parent, error)


def _checksums(tensors: Tensors) -> dict[str, str]:
    """Return the CRC-32 of each tensor's bytes, in hexadecimal."""
    return {name: f"{zlib.crc32(t.numpy().tobytes()):08x}" for name, t in tensors.items()}
