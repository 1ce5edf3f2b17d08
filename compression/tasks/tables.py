"""Reading parquet files as the hub has them, and the Arrow files that `datasets` makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from compression.errors import UserError, first_line

if TYPE_CHECKING:
    from pathlib import Path


def read_tables(files: list[Path], columns: list[str], labels: tuple[str, ...]) -> pa.Table:
    """Read `columns` and the column `label` of all files into one table.

    Raises UserError, with the file's name, if a file cannot be read, lacks a column, or holds other classes than
    `labels` (empty for regression), as the data of another task does.
    """
    return pa.concat_tables([_read_table(file, [*columns, "label"], labels) for file in files])


def _read_table(file: Path, columns: list[str], labels: tuple[str, ...]) -> pa.Table:
    """Read and check one file."""
    try:
        table = _read_arrow(file, columns) if file.suffix == ".arrow" else _read_parquet(file, columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not an intact {file.suffix[1:]} file: {first_line(error)}.") from error
    if missing := set(columns) - set(table.column_names):
        raise UserError(f"{file} has no column {' and '.join(sorted(missing))}; it needs {', '.join(columns)}.")
    if (stored := _class_names(table)) and labels and stored != labels:
        raise UserError(f"{file} holds the classes {', '.join(stored)}; the task has {', '.join(labels)}.")
    _check_labels(file, table.column("label"), len(labels))
    return table.replace_schema_metadata()  # without metadata, which must be equal for tables to be joined


def _read_parquet(file: Path, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        return parquet.read(columns)


def _read_arrow(file: Path, columns: list[str]) -> pa.Table:
    """Read the columns as stored: images stay encoded."""
    from datasets import Dataset  # takes seconds to import, and is not needed for parquet files

    stored = Dataset.from_file(str(file))
    return stored.select_columns([name for name in columns if name in stored.column_names]).with_format("arrow")[:]


def _class_names(table: pa.Table) -> tuple[str, ...]:
    """Return the class names that the hub's libraries write into a file's metadata; empty if there are none."""
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(metadata.get("info", {}).get("features", {}).get("label", {}).get("names", ()))


def _check_labels(file: Path, labels: pa.ChunkedArray, classes: int) -> None:
    """Raise UserError for a missing label or, if `classes` is not 0, one outside 0 to classes-1."""
    values = labels.unique().to_pylist()
    if labels.null_count or (classes and not all(label in range(classes) for label in values)):
        raise UserError(f"{file} has examples without a label, or labels outside 0 to {classes - 1}.")
