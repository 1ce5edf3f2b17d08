"""The logins that are open: a file for each, so that to log out ends a session here and not in one browser alone.

The session's cookie is signed and holds the token; the file has the token's checksum as its name, and no content.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import TYPE_CHECKING

from compression.study.private import make_private_folder
from compression.tracking.journal import home, write_error

if TYPE_CHECKING:
    from pathlib import Path

LOGIN_SECONDS = 12 * 3600


def begin() -> str:
    """Open a session and return its token; forgets those that have expired. Raises UserError on a full disk."""
    token = secrets.token_urlsafe(32)
    path = _path(token)
    try:
        make_private_folder(path.parent)
        path.touch(mode=0o600)
        for other in path.parent.iterdir():
            if _is_expired(other):
                other.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    return token


def is_open(token: str) -> bool:
    """Whether the session has neither been ended nor expired."""
    path = _path(token)
    return path.exists() and not _is_expired(path)


def end(token: str) -> None:
    """End the session, for every browser that has its cookie; one that has ended already stays so."""
    _path(token).unlink(missing_ok=True)


def _path(token: str) -> Path:
    return home() / "sessions" / hashlib.sha256(token.encode()).hexdigest()


def _is_expired(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > LOGIN_SECONDS
    except FileNotFoundError:  # another login has just forgotten it
        return True
