"""Reading parquet files as they lie on the hub, and the Arrow files that `datasets` makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from compression.errors import UserError, first_line

if TYPE_CHECKING:
    from pathlib import Path


def read(files: list[Path], columns: list[str], labels: tuple[str, ...]) -> pa.Table:
    """The columns, and `label`, of all files in one table.

    Raises UserError, naming the file, where one cannot be read, lacks a column, or holds other classes than
    `labels` (empty for regression): the data of another task, say.
    """
    return pa.concat_tables([_table(file, [*columns, "label"], labels) for file in files])


def _table(file: Path, columns: list[str], labels: tuple[str, ...]) -> pa.Table:
    try:
        table = _arrow(file, columns) if file.suffix == ".arrow" else _parquet(file, columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not an intact {file.suffix[1:]} file: {first_line(error)}.") from error
    if missing := set(columns) - set(table.column_names):
        raise UserError(f"{file} has no column {' and '.join(sorted(missing))}; it needs {', '.join(columns)}.")
    if (known := _classes(table)) and labels and known != labels:
        raise UserError(f"{file} holds the classes {', '.join(known)}; the task has {', '.join(labels)}.")
    _check_range(file, table.column("label"), len(labels))
    return table.replace_schema_metadata()  # so that tables with different notes can be joined


def _parquet(file: Path, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(file) as opened:
        return opened.read(columns)


def _arrow(file: Path, columns: list[str]) -> pa.Table:
    """As it is stored: images stay encoded."""
    from datasets import Dataset  # takes seconds, which parquet files do not need

    stored = Dataset.from_file(str(file))
    return stored.select_columns([name for name in columns if name in stored.column_names]).with_format("arrow")[:]


def _classes(table: pa.Table) -> tuple[str, ...]:
    """The class names that the hub's libraries note in a file; empty if there is no such note."""
    note = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(note.get("info", {}).get("features", {}).get("label", {}).get("names", ()))


def _check_range(file: Path, labels: pa.ChunkedArray, classes: int) -> None:
    found = labels.unique().to_pylist()
    if labels.null_count or classes and not all(label in range(classes) for label in found):
        raise UserError(f"{file} has examples without a label, or labels outside 0 to {classes - 1}.")
