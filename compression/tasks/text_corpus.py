"""Running text for language models: WikiText-2, sets of the hub, somebody's own files; in three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import UserError
from compression.tasks.columns import TEXTS
from compression.tasks.hub_files import find_hub_files, other_form
from compression.tasks.sources import DatasetFiles, PublicDataset, find_dataset
from compression.tasks.table_files import SUFFIXES, find_files, is_text, named_splits, read_table, read_utf8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compression.tasks import TaskRequest
    from compression.tasks.sources import SplitFiles

PLAIN = (".txt", ".text", ".md", ".rst")  # files that are text themselves; others are tables with a column of it
HELD_OUT = 10  # a tenth of a text that is not split is for validation, and another one for the test
BETWEEN = "\n\n"  # two documents
WIKITEXT = PublicDataset(
    "wikitext",
    "Salesforce/wikitext",
    subfolders=("wikitext-2-v1",),
    splits=("validation", "test"),
    optional_splits=("train",),
)


@dataclass(frozen=True)
class Corpus:
    """The text of three splits, and where it is from."""

    texts: Mapping[str, str]  # train, validation, test
    source: str
    told: str  # how the splits were made

    def fingerprint(self) -> str:
        """A SHA-256 over the text of all splits."""
        return hashlib.sha256(repr(sorted(self.texts.items())).encode()).hexdigest()


def find(request: TaskRequest) -> Corpus:
    """Find and read the text of `language/wikitext2`, `language/hub/…`, `language/PATH`, or `language` with data=PATH.

    Raises UserError if there is none, or if it cannot be read.
    """
    name = request.name.removeprefix("language").removeprefix("/")
    if name == "wikitext2":
        dataset = find_dataset(WIKITEXT, request.data)
    elif name.startswith("hub/"):
        place = name.removeprefix("hub/")
        if "/" not in place:
            raise other_form(request, place)
        dataset = find_hub_files(request, place)
    else:
        if name and request.data:
            raise UserError(f"{request.name} names the text, and so does data={request.data}; give one of them.")
        path = Path(name or request.data)
        if not (name or request.data):
            raise UserError("language needs data=PATH: a text, JSONL or parquet file, or a folder of them.")
        dataset = DatasetFiles(_own_files(path), f"{path}")
    texts, told = _three_splits(
        {split: _join(files, request) for split, files in dataset.files.items()}, dataset.source
    )
    return Corpus(texts, dataset.source, told)


def _own_files(path: Path) -> SplitFiles:
    """Return the files of each split of a file or folder; `{"": …}` where they name none. Raises UserError."""
    if path.is_file():
        if path.suffix.lower() not in (*PLAIN, *SUFFIXES):
            raise UserError(f"{path} is of an unknown type; text is {', '.join(PLAIN)} or {', '.join(SUFFIXES[:-1])}.")
        return {"": [path]}
    if not path.is_dir():
        raise UserError(
            f"There is no text {path}: give a file or folder, language/wikitext2 or language/hub/OWNER/NAME."
        )
    plain = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix.lower() in PLAIN]
    if not plain:
        return find_files(path)
    named = named_splits(path, plain)
    return named if "train" in named or "test" in named else {"": plain}


def _join(files: list[Path], request: TaskRequest) -> str:
    """Return the text of some files, one after another. Raises UserError if one cannot be read."""
    return BETWEEN.join(read_utf8(file) if file.suffix.lower() in PLAIN else _column(file, request) for file in files)


def _column(file: Path, request: TaskRequest) -> str:
    """Return the rows of a table's column of text, one after another."""
    table = read_table(file)
    texts = [field.name for field in table.schema if is_text(field.type)]
    found = list(request.text_columns) or [name for name in texts if name.lower() in TEXTS] or texts
    if len(found) != 1 or found[0] not in texts:
        raise UserError(
            f"{file} has the columns {', '.join(table.column_names)}; name the one with the text: text_columns=NAME."
        )
    rows = [row or "" for row in table.column(found[0]).to_pylist()]
    # Rows that end in a line's end, as WikiText's do, are the lines of one text, which they make up again. (The code of
    # Frantar et al. 2022 puts two more between them.)
    is_lines = all(row.endswith("\n") for row in rows if row)
    return ("" if is_lines else BETWEEN).join(rows)


def _three_splits(given: Mapping[str, str], source: str) -> tuple[dict[str, str], str]:
    """Return the text of train, validation and test, and in words how they were made. Raises UserError if one is empty.

    What is missing is cut from the end of the training text; where that is missing, of the validation text.
    """
    if empty := [split for split, text in given.items() if not text.strip()]:
        raise UserError(f"{' '.join(['The', empty[0], 'text'] if empty[0] else ['The text'])} of {source} is empty.")
    main = next(split for split in ("train", "", "validation", "test") if split in given)
    texts, cut = {"train": given[main]}, []
    for split in ("test", "validation"):
        if split in given and split != main:
            texts[split] = given[split]
        else:
            texts["train"], texts[split] = _cut(texts["train"])
            cut.append(split)
    told = f"{' and '.join(reversed(cut))} cut from the end of {main or 'it'}" if cut else "splits as given"
    return texts, told + (", as there is no training text" if main in ("validation", "test") else "")


def _cut(text: str) -> tuple[str, str]:
    """Cut the last tenth off a text, at the end of a line if there is one near."""
    place = len(text) - len(text) // HELD_OUT
    line = text.find("\n", place)
    place = line + 1 if 0 <= line - place < len(text) // (10 * HELD_OUT) else place
    return text[:place], text[place:]
