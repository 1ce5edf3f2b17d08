"""Classification or regression of text in somebody's own tables: a file, or a folder with a file for each split."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from compression.errors import UserError
from compression.models import TEXT_MODELS
from compression.tasks import metrics, short_name
from compression.tasks.cache import Tensors, cached
from compression.tasks.columns import HIDDEN, SHOWN, Columns, Labels, describe_labels, find_columns, parse_labels
from compression.tasks.glue import DEFAULT_MODEL, FINE_TUNING, FROM_SCRATCH
from compression.tasks.sources import DatasetFiles
from compression.tasks.splits import fixed_permutation, splits_digest, train_validation_indices
from compression.tasks.table_files import class_names, find_files, is_text, read_table
from compression.tasks.task import Split, Task
from compression.tasks.text import TableTokenizer, load_table_tokenizer, trim_padding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from compression.tasks import TaskRequest

LEAST = 10  # examples in a file: fewer cannot be divided into three splits that say anything


def text(request: TaskRequest) -> Task:
    """Load the text and labels in `data=PATH`: CSV, TSV, JSON, JSONL or parquet, a file or a folder.

    A folder holds files named train and possibly validation (valid, val, dev) and test. Splits that are missing are cut
    from the training data by a fixed permutation, a tenth each; validation without test is the test split, as for GLUE.
    Raises UserError for data that cannot be found, read or learned from, and a tokenizer that cannot be loaded.
    """
    root = os.environ.get("COMPRESSION_DATA", "")
    path = Path(request.data) if request.data else Path(root) / "text"
    if not request.data and not (root and path.is_dir()):
        raise UserError(f"{request.name} needs data=PATH: a CSV, TSV, JSONL or parquet file, or a folder of them.")
    return make_task(request, DatasetFiles(find_files(path), f"{path}"))


def make_task(request: TaskRequest, dataset: DatasetFiles) -> Task:
    """Make the task of a data set's files, by split; `{"": files}` is one split to divide. Raises UserError."""
    tables = _read_splits(request, dataset)
    names, tokenizer = tables.tables, _load_tokenizer(request.model, tables)
    key = hashlib.sha256(
        repr((dataset.fingerprint(), tokenizer.fingerprint(), request.limit, tables.columns, tables.labels)).encode()
    ).hexdigest()
    tensors = cached(f"text-{key[:32]}", partial(_make_tensors, tables, tokenizer, request.limit))
    splits = {name: _make_split(tensors, name, tokenizer.input_names) for name in names}
    classes = tables.labels.classes
    return Task(
        short_name(request.name, request.data),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        outputs=len(classes) or 1,
        labels=classes,
        metric="accuracy" if classes else "pearson",
        compute_metrics=_metrics(len(classes)),
        loss=metrics.cross_entropy if classes else metrics.squared_error,
        model=DEFAULT_MODEL,
        student="",
        training=FINE_TUNING | (FROM_SCRATCH if request.model in TEXT_MODELS else {}),
        from_scratch=FROM_SCRATCH,
        source=dataset.source,
        description=f"{dataset.source}: {_description(tables, splits, tokenizer)}.",
        digest=splits_digest(splits.values()),
        is_limited=request.limit is not None,
        tokenizer=tokenizer.tokenizer,
    )


@dataclass(frozen=True)
class _Tables:
    """Our three splits: tables of text, and targets."""

    tables: Mapping[str, pa.Table]  # split -> its columns of text
    targets: Mapping[str, list[float]]
    columns: Columns
    labels: Labels
    told: str  # how the splits were made


def _read_splits(request: TaskRequest, dataset: DatasetFiles) -> _Tables:
    """Read and check all files, and make our splits of them. Raises UserError."""
    read = {split: [(file, read_table(file)) for file in files] for split, files in dataset.files.items()}
    main = "train" if "train" in read else ""
    first, whole = read[main][0]
    columns = find_columns(whole.column_names, first, request.text_columns, request.label_column)
    names = class_names(whole, columns.label)
    without_labels = "test" in read and _is_unlabelled(read["test"], columns, read["train"])
    if without_labels:
        del read["test"]
    texts = {
        split: pa.concat_tables([_texts(file, table, columns) for file, table in parts])
        for split, parts in read.items()
    }
    values = _read_labels(read, columns)
    place = f"The labels of {first} (column {columns.label!r})"
    labels = describe_labels(values[main], names, place, request.name == "text/regression")
    targets = {split: _targets(split, given, labels, place) for split, given in values.items()}
    rows, told = choose_rows({split: len(given) for split, given in values.items()}, first)
    if without_labels:
        told += "; the test file has no labels"
    return _Tables(
        {split: texts[source].take(pa.array(chosen)) for split, (source, chosen) in rows.items()},
        {split: [targets[source][i] for i in chosen] for split, (source, chosen) in rows.items()},
        columns,
        labels,
        told,
    )


def _is_unlabelled(test: list[tuple[Path, pa.Table]], columns: Columns, train: list[tuple[Path, pa.Table]]) -> bool:
    """Whether a test split has no labels, or the -1 that stands for hidden ones, as in competitions."""
    if any(columns.label not in table.column_names for _, table in test):
        return True
    values = {v for _, table in test for v in parse_labels(table.column(columns.label).to_pylist())}
    known = {v for _, table in train for v in parse_labels(table.column(columns.label).to_pylist())}
    return values <= {None} or (values <= {None, HIDDEN} and HIDDEN not in known)


def _texts(file: Path, table: pa.Table, columns: Columns) -> pa.Table:
    """Return the columns of text. Raises UserError if one is missing, is no text, or lacks the text of an example."""
    if missing := {*columns.texts, columns.label} - set(table.column_names):
        raise UserError(
            f"{file} has no column {' and '.join(sorted(map(repr, missing)))}, as other files have; "
            f"it has {', '.join(map(repr, table.column_names))}."
        )
    chosen = table.select(list(columns.texts)).replace_schema_metadata()
    for name in columns.texts:
        column = chosen.column(name)
        if not is_text(column.type):
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            hint = "images are for task=imagefolder" if pa.types.is_struct(kind) else "text_columns=NAME names another"
            raise UserError(f"{file}: the column {name!r} holds {kind}, not text; {hint}.")
        values = column.to_pylist()
        if empty := [i for i, value in enumerate(values, 1) if value is None or not value.strip()]:
            raise UserError(
                f"{file}: {len(empty)} examples have no text in {name!r}, the first is number {empty[0]}; remove them."
            )
        chosen = chosen.set_column(chosen.column_names.index(name), name, pa.array(values, pa.large_string()))
    return chosen


def _read_labels(read: Mapping[str, list[tuple[Path, pa.Table]]], columns: Columns) -> dict[str, list[Any]]:
    """Return the labels of each split, of one type in all. Raises UserError if an example has none."""
    raw = [(s, file, table.column(columns.label).to_pylist()) for s, parts in read.items() for file, table in parts]
    parsed = iter(parse_labels([value for *_, values in raw for value in values]))
    found: dict[str, list[Any]] = {}
    for split, file, values in raw:
        labels = [next(parsed) for _ in values]
        if missing := [i for i, label in enumerate(labels, 1) if label is None]:
            raise UserError(
                f"{file}: {len(missing)} examples lack a label in {columns.label!r}, the first is number {missing[0]}: "
                "remove them."
            )
        found.setdefault(split, []).extend(labels)
    return found


def _targets(split: str, values: list[Any], labels: Labels, place: str) -> list[float]:
    """Return the targets of a split. Raises UserError for a class that the training data lacks."""
    if not labels.classes:
        if unusable := [v for v in values if isinstance(v, str) or abs(v) == float("inf")]:
            raise UserError(f"{place} are numbers, and the {split} split has {unusable[0]!r}.")
        return [float(value) for value in values]
    if unknown := [value for value in values if value not in labels.targets]:
        raise UserError(f"{place} are without {unknown[0]!r}, which the {split} split has; a model cannot learn it.")
    return [labels.targets[value] for value in values]


def choose_rows(sizes: Mapping[str, int], place: Path) -> tuple[dict[str, tuple[str, list[int]]], str]:
    """Return for each of our splits the split it is taken from, and which rows of it; and what was done, in words."""
    main = "train" if "train" in sizes else ""
    if sizes[main] < LEAST:
        raise UserError(f"{place} holds {sizes[main]} examples to train on; a task takes {LEAST} or more.")
    rest, cut, chosen = torch.arange(sizes[main]), [], {}
    given_test = next((split for split in ("test", "validation") if split in sizes), "")
    if given_test:
        chosen["test"] = (given_test, fixed_permutation(sizes[given_test]).tolist())
    else:
        rest, test = train_validation_indices(sizes[main])
        chosen["test"], cut = (main, test.tolist()), ["test"]
    if given_test == "test" and "validation" in sizes:
        chosen["validation"] = ("validation", fixed_permutation(sizes["validation"]).tolist())
        train = rest[fixed_permutation(len(rest))]
    else:
        kept, validation = train_validation_indices(len(rest))
        chosen["validation"], train = (main, rest[validation].tolist()), rest[kept]
        cut = ["validation", *cut]
    told = f"{' and '.join(cut)} cut from {main or 'it'} by a fixed permutation" if cut else "splits as given"
    if given_test == "validation":
        told += ", the validation file is the test split"
    return {"train": (main, train.tolist()), **chosen}, told


def _load_tokenizer(model: str, tables: _Tables) -> TableTokenizer:
    """Load the tokenizer of a pretrained model; make one of the training texts for the lab's own models."""
    if model not in TEXT_MODELS:
        return load_table_tokenizer(model or DEFAULT_MODEL, DEFAULT_MODEL)
    from compression.tasks.vocabulary import word_tokenizer

    table = tables.tables["train"]
    return word_tokenizer(text for name in tables.columns.texts for text in table.column(name).to_pylist())


def _make_tensors(tables: _Tables, tokenizer: TableTokenizer, limit: int | None) -> Tensors:
    """Return the encoded texts `(n, longest)` and the targets `(n,)` of our splits, named `split.tensor`."""
    dtype = torch.long if tables.labels.classes else torch.float32
    tensors = {}
    for split, table in tables.tables.items():
        encoded = tokenizer.tokenize(table.slice(0, limit), tables.columns.texts)
        encoded["targets"] = torch.tensor(tables.targets[split][:limit], dtype=dtype)
        tensors.update({f"{split}.{name}": tensor for name, tensor in encoded.items()})
    return tensors


def _make_split(tensors: Tensors, name: str, input_names: tuple[str, ...]) -> Split:
    return Split({n: tensors[f"{name}.{n}"] for n in input_names}, tensors[f"{name}.targets"], trim_padding)


def _metrics(classes: int) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Return the function that computes the metrics: also F1 of the second class where there are two."""
    return metrics.correlations if not classes else metrics.f1 if classes == 2 else metrics.accuracy


def _description(tables: _Tables, splits: Mapping[str, Split], tokenizer: TableTokenizer) -> str:
    """Tell which columns were read, what the labels are, how the splits were made, and how much text was cut off."""
    classes = tables.labels.classes
    shown = ", ".join(classes[:SHOWN]) + (", …" if len(classes) > SHOWN else "")
    what = f"{len(classes)} classes ({shown})" if classes else "numbers to predict"
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    counts = [tokenizer.token_counts(split.inputs) for split in splits.values() if isinstance(split.inputs, dict)]
    full = torch.cat(counts) >= tokenizer.max_length
    long = f"; {full.float().mean():.0%} of the texts are cut to {tokenizer.max_length} tokens" if full.any() else ""
    text, label = " and ".join(tables.columns.texts), tables.columns.label
    return f"text from {text}; labels from {label}, {what}; {sizes}; {tables.told}{long}"
