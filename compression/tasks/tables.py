"""Reading parquet files as the hub has them, and the Arrow files that `datasets` makes of them."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from compression.errors import UserError, first_line
from compression.models.classes import match_names, name_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_tables(
    files: list[Path], columns: list[str], labels: tuple[str, ...], interval: tuple[float, float] | None = None
) -> pa.Table:
    """Read `columns` and the column `label` of all files into one table, with labels as int64, or float64 for numbers.

    Labels are class numbers, or names in the order of `labels` or any other: a file that names its classes is matched
    by these names. Without `labels`, they are numbers, in `interval` if there is one. Raises UserError, with the file's
    name, if a file cannot be read, lacks a column or a value, or holds other classes, as the data of another task does;
    and if there are no rows.
    """
    table = pa.concat_tables([_read_table(file, [*columns, "label"], labels, interval) for file in files])
    if not len(table):
        raise UserError(f"{' and '.join(map(str, files))} holds no examples.")
    return table


def require_texts(table: pa.Table, columns: Sequence[str], file: Path | str) -> pa.Table:
    """Return `table` with `columns` as strings. Raises UserError if one holds something else, or lacks a text."""
    for name in columns:
        values = table.column(name)
        if pa.types.is_dictionary(values.type):  # a pandas Categorical
            values = values.cast(values.type.value_type)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise UserError(f"{file} has no {name} in {values.null_count} of its rows (the first is row {row}).")
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)) and len(values):
            raise UserError(f"The column {name} of {file} holds {values.type} values; it needs texts.")
        table = table.set_column(table.column_names.index(name), name, values.cast(pa.string()))
    return table


def _read_table(
    file: Path, columns: list[str], labels: tuple[str, ...], interval: tuple[float, float] | None
) -> pa.Table:
    """Read and check one file."""
    try:
        table = _read_arrow(file, columns) if file.suffix == ".arrow" else _read_parquet(file, columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not an intact {file.suffix[1:]} file: {first_line(error)}.") from error
    if missing := set(columns) - set(table.column_names):
        raise UserError(f"{file} has no column {' and '.join(sorted(missing))}; it needs {', '.join(columns)}.")
    stored = _class_names(table)
    if stored and labels and match_names(stored, labels) is None:
        raise UserError(f"{file} holds the classes {', '.join(stored)}; the task has {', '.join(labels)}.")
    values = table.column("label").to_pylist()
    if labels:
        column = pa.array(_class_indices(file, values, stored or labels, labels), pa.int64())
    else:
        column = pa.array(_numbers(file, values, interval), pa.float64())
    table = table.set_column(table.column_names.index("label"), "label", column)
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
    try:
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(metadata.get("info", {}).get("features", {}).get("label", {}).get("names", ()))
    except (ValueError, AttributeError, TypeError):  # somebody else's metadata
        return ()


def _class_indices(file: Path, values: list[Any], names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Return the place in `labels` of each value: a number of one of `names`, 1, 1.0 or "1", or a name itself.

    Raises UserError for a missing label, or one that is neither.
    """
    order = match_names(names, labels)
    assert order is not None
    places = {number: order.index(number) for number in range(len(names))}
    known: dict[Any, int] = places | {str(number): place for number, place in places.items()}
    known |= {name_key(label): place for place, label in enumerate(labels)}
    keys = [_lookup_key(value) for value in values]
    if wrong := sorted({str(value) for value, key in zip(values, keys, strict=True) if key not in known}):
        raise UserError(
            f"{file} has examples without a label, or labels outside 0 to {len(labels) - 1}: {', '.join(wrong[:3])} "
            f"is none of {', '.join(labels)}."
        )
    return [known[key] for key in keys]


def _lookup_key(value: Any) -> str | int | float | Decimal:
    """Return what a label is looked up by; for a list or another object its text, which is no label."""
    if isinstance(value, str):
        return name_key(value)
    return value if isinstance(value, (int, float, Decimal)) else str(value)


def _numbers(file: Path, values: list[Any], interval: tuple[float, float] | None) -> list[float]:
    """Return labels that are finite numbers in `interval`. Raises UserError for any other, also for texts."""
    low, high = interval or (-math.inf, math.inf)
    numbers = []
    for row, value in enumerate(values):
        number = float(value) if isinstance(value, (int, float, Decimal)) else math.nan
        if not (math.isfinite(number) and low <= number <= high):
            limits = f" from {low:g} to {high:g}" if interval else ""
            raise UserError(f"{file} has the label {value!r} in row {row}; it needs a number{limits} for each.")
        numbers.append(number)
    return numbers
