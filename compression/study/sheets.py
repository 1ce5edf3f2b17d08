"""Rows as CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula


def text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """CSV with a line of headings: `columns`, or the keys in the order they come up."""
    kept = list(rows)
    named = list(columns) or list(dict.fromkeys(key for row in kept for key in row))
    written = io.StringIO()
    writer = csv.DictWriter(written, named, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in kept)
    return written.getvalue()


def harmless(value: Any) -> Any:
    """A text that a spreadsheet would calculate, with the apostrophe that keeps it a text; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
