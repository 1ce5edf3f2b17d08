"""Reading somebody's own tables (CSV, TSV, JSON, JSONL, parquet, Arrow), and finding the files of each split."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from compression.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from compression.tasks.sources import SplitFiles

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
SPLIT_NAMES = {  # a part of a file's name, or the name of its folder -> the split
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def find_files(path: Path, subfolders: Sequence[str] = ()) -> SplitFiles:
    """Return the files of each split in a folder, or in the first of its subfolders that has any.

    A single file, and a folder with one file that names no split, are the whole data: `{"": [file]}`. Raises UserError
    if there are none, if they name no train split, or if a split has files of several types or lacks some.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path} is of an unknown type; own data is {', '.join(SUFFIXES[:-1])}.")
        return {"": [path]}
    if not path.is_dir():
        raise UserError(f"There is no file or folder data={path}.")
    for folder in (path, *(path / name for name in subfolders if name)):
        if files := [f for f in sorted([*folder.glob("*"), *folder.glob("*/*")]) if _is_table(f)]:
            return _by_split(folder, files)
    raise UserError(f"The folder {path} holds no {', '.join(SUFFIXES[:-1])} file.")


def _is_table(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith((".", "_"))


def named_splits(folder: Path, files: Iterable[Path]) -> SplitFiles:
    """Return the files below `folder` that name a split, themselves or by the folder they are in."""
    splits: SplitFiles = {}
    for file in files:
        if split := split_name(file.stem) or ("" if file.parent == folder else split_name(file.parent.name)):
            splits.setdefault(split, []).append(file)
    return splits


def _by_split(folder: Path, files: list[Path]) -> SplitFiles:
    """Sort files into splits by their names. Raises UserError as `find_files` does."""
    splits = named_splits(folder, files)
    if not splits and len(files) == 1:
        return {"": files}
    if "train" not in splits:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        raise UserError(f"No file in {folder} is named train (it holds {names}); name the splits, or give one file.")
    for split, parts in splits.items():
        _check_parts(folder, split, parts)
    return splits


def split_name(name: str) -> str:
    """Return the split that a name names, as `train-00000-of-00002` does; empty if none, or more than one."""
    named = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES}
    return named.pop() if len(named) == 1 else ""


def _check_parts(folder: Path, split: str, parts: list[Path]) -> None:
    """Raise UserError if a split seems to be there twice, or if parts of it are missing."""
    names = ", ".join(str(file.relative_to(folder)) for file in parts)
    numbered = {(file.parent, re.sub(r"\d+", "#", file.name)) for file in parts}
    if len(numbered) > 1:
        raise UserError(f"{folder} holds more than one {split} split ({names}); leave one, or give a folder with one.")
    if (count := re.search(r"-of-0*(\d+)\.", parts[0].name)) and int(count[1]) != len(parts):
        raise UserError(f"{folder} lacks files of its {split} split: it holds {names}, of {count[1]}.")


def read_table(file: Path) -> pa.Table:
    """Read all columns of a file. Those of CSV and TSV are text, whatever they hold.

    Raises UserError if the file cannot be read as what its name says, is not UTF-8, or has no rows.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            table = _read_delimited(file, suffix == ".tsv")
        elif suffix in (".json", ".jsonl"):
            table = _read_json(file)
        else:
            table = _read_columnar(file, suffix)
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise UserError(f"{file} is not an intact {suffix[1:]} file: {first_line(error)}.") from error
    if not table.num_rows:
        raise UserError(f"{file} holds no examples.")
    return table


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, also where its values are numbered (a dictionary)."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values))


def class_names(table: pa.Table, column: str) -> tuple[str, ...]:
    """Return the class names that the hub's libraries write into a file's metadata; empty if there are none."""
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(metadata.get("info", {}).get("features", {}).get(column, {}).get("names", ()))


def _read_columnar(file: Path, suffix: str) -> pa.Table:
    if suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            return parquet.read()
    from datasets import Dataset  # takes seconds to import, and is not needed for parquet files

    table: pa.Table = Dataset.from_file(str(file)).data.table
    return table


def read_utf8(file: Path) -> str:
    """Read a text file as UTF-8, with or without a byte order mark."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file} is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}): save it as UTF-8, or "
            "convert it with iconv -f ENCODING -t UTF-8."
        ) from error


def _read_delimited(file: Path, is_tsv: bool) -> pa.Table:
    """Read a CSV file, whose delimiter may also be `;` or a tab, or a TSV file. The first line names the columns."""
    text = read_utf8(file)
    first = text.partition("\n")[0]
    delimiter = "\t" if is_tsv else max(",;\t", key=first.count)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # not splitlines: texts hold U+2028
    if delimiter == "\t" and {line.count("\t") for line in lines if line} == {first.count("\t")}:
        rows: Iterable[list[str]] = ([_unquote(cell) for cell in line.split("\t")] for line in lines if line)
    else:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return _from_rows(file, rows, delimiter)


def _unquote(cell: str) -> str:
    """Return a cell without the quotes around it, if those within are doubled, as pandas writes them."""
    inner = cell[1:-1].replace('""', "")
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner
    return cell[1:-1].replace('""', '"') if quoted else cell


def _from_rows(file: Path, rows: Iterable[list[str]], delimiter: str) -> pa.Table:
    """Make a table of text from rows, of which the first names the columns."""
    numbered = ((number, row) for number, row in enumerate(rows, 1) if row)
    _, header = next(numbered, (0, []))
    header = [name.strip() for name in header]
    if not header:
        raise UserError(f"{file} is empty.")
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{file} has two columns named {twice[0]!r}.")
    columns: list[list[str]] = [[] for _ in header]
    for number, row in numbered:
        if len(row) != len(header):
            raise UserError(
                f"{file}: row {number} has {len(row)} fields and the first row {len(header)} ({', '.join(header)}); "
                f"text that holds {'a tab' if delimiter == chr(9) else delimiter!r} stands in double quotes."
            )
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(header, columns, strict=True)})


def _read_json(file: Path) -> pa.Table:
    """Read a JSON object a line, or one list of objects."""
    text = read_utf8(file)
    try:
        rows: list[Any] = json.loads(text) if text.lstrip().startswith("[") else _json_lines(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON, a list of objects or an object a line ({error}).") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} has to hold an object for each example, with a name for each value.")
    table = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        try:
            table[name] = pa.array([row.get(name) for row in rows])
        except pa.ArrowException as error:
            raise UserError(f"{file}: {name!r} holds values of different types ({first_line(error)}).") from error
    return pa.table(table)


def _json_lines(text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(f"line {number}: {error.msg}", line, error.pos) from error
    return found
