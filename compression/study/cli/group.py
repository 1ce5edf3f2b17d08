"""The group that the commands join, and what they share."""

from __future__ import annotations

from pathlib import Path

import click

from compression.study import texts


@click.group("study", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def group() -> None:
    """Take part in the study, or run it: people, time, questionnaires, hand-in, analysis."""


def text_of(path: Path) -> str:
    """What a file says; refused where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise texts.Refused("no_file", file=path, reason=getattr(error, "strerror", "") or "UTF-8?") from error
