"""The command group `compression study`, and what its commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from compression.study import texts

if TYPE_CHECKING:
    from pathlib import Path


@click.group("study", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def group() -> None:
    """Take part in the study, or run it: people, time, questionnaires, hand-in, analysis."""


def read_text_file(path: Path) -> str:
    """Return the content of a UTF-8 file. Raises StudyError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "") or "UTF-8?"
        raise texts.StudyError("no_file", file=path, reason=reason) from error
