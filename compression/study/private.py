"""What the study keeps on disk is for its owner alone, whatever the umask: answers, notes, models, bundles."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Create the folder if it is not there, and take the rights of others on it. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(folder)


def make_private(path: Path) -> None:
    """Take all rights of the group and of others on a file or folder. Raises OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        path.chmod(mode & 0o700)
