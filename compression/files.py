"""Writing files so that nobody ever reads half of one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give the block another path to write to, and move that file to `path` once the block has ended well.

    `path` is the old file until then, and stays it where the block raises. The other path is `<name>.half` beside it,
    so one process at a time may write a file. Raises OSError where the file system does.
    """
    half = path.with_name(f"{path.name}.half")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
