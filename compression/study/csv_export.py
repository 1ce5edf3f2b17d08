"""CSV files that a spreadsheet shows as text and does not evaluate."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# A spreadsheet evaluates a cell that begins with one of these as a formula (CSV injection).
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return `rows` as CSV with a header: `columns`, or else all keys in the order of their first appearance."""
    rows = list(rows)
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    output = io.StringIO()
    writer = csv.DictWriter(output, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: escape_formula(value) for name, value in row.items()} for row in rows)
    return output.getvalue()


def escape_formula(value: Any) -> Any:
    """Return `value`, with an apostrophe before a text that a spreadsheet would evaluate; numbers are unchanged."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_PREFIXES) else value
