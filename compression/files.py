"""Files: writing them so that nobody ever reads half of one, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename that file to `path` if the block does not raise.

    Until then, and if the block raises, `path` remains the old file. The temporary path is `<name>.half` in the same
    folder, so only one process at a time may write a file. Raises OSError if the file system does.
    """
    half = path.with_name(f"{path.name}.half")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
