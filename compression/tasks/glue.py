"""GLUE: nine tasks of understanding English text; Wang et al. 2019, arXiv:1804.07461.

The labels of GLUE's test splits are not public. So its validation split is our test split, and our validation split
is a tenth of its training data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compression.errors import UserError
from compression.models import TEXT_MODELS
from compression.tasks import TaskRequest, metrics, tables
from compression.tasks.cache import Tensors, cached
from compression.tasks.sources import PublicDataset, SplitFiles, find_dataset
from compression.tasks.splits import fixed_permutation, splits_digest, train_validation_indices
from compression.tasks.task import Split, Task
from compression.tasks.text import TableTokenizer, load_table_tokenizer, trim_padding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

DEFAULT_MODEL = "bert-large-uncased"
FINE_TUNING: dict[str, Any] = {  # Devlin et al. 2018, arXiv:1810.04805, section 4.1 and appendix A.3
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 2e-5,
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
}
FROM_SCRATCH: dict[str, Any] = {
    "epochs": 5,
    "learning_rate": 2e-3,
}  # the hyperparameters that differ for models that are not pretrained


@dataclass(frozen=True)
class Corpus:
    """One of GLUE's data sets, with its official metric."""

    columns: tuple[str, ...]  # of text
    labels: tuple[str, ...]  # class names; empty for regression
    metric: str = "accuracy"
    compute_metrics: Callable[[Tensor, Tensor], dict[str, float]] = metrics.accuracy
    test: str = "validation"  # the published split that is our test split
    mismatched: str = ""  # a second one, of other genres than the training data
    interval: tuple[float, float] | None = None  # of the labels of a regression


CORPORA = {
    "sst2": Corpus(("sentence",), ("negative", "positive")),
    "cola": Corpus(("sentence",), ("unacceptable", "acceptable"), "matthews_correlation", metrics.matthews_correlation),
    "mrpc": Corpus(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "f1", metrics.f1),
    "qqp": Corpus(("question1", "question2"), ("not_duplicate", "duplicate"), "f1", metrics.f1),
    "stsb": Corpus(("sentence1", "sentence2"), (), "pearson", metrics.correlations, interval=(0, 5)),
    "mnli": Corpus(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        test="validation_matched",
        mismatched="validation_mismatched",
    ),
    "qnli": Corpus(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Corpus(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Corpus(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def glue(request: TaskRequest) -> Task:
    """Load a task of GLUE, encoded with the tokenizer of the request's model.

    MNLI has a further test split, `mismatched`, if the data has it. Raises UserError if data or tokenizer cannot be
    loaded.
    """
    name = request.name.removeprefix("glue/")
    corpus, tokenizer = CORPORA[name], load_table_tokenizer(request.model or DEFAULT_MODEL, DEFAULT_MODEL)
    dataset = find_dataset(_dataset(name, corpus), request.data)
    key = hashlib.sha256(f"{dataset.fingerprint()} {tokenizer.fingerprint()} {request.limit}".encode())
    make = partial(_make_tensors, dataset.files, corpus, tokenizer, request.limit)
    splits = _make_splits(cached(f"glue-{name}-{key.hexdigest()[:32]}", make), tokenizer.input_names)
    return Task(
        request.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        outputs=len(corpus.labels) or 1,
        labels=corpus.labels,
        metric=corpus.metric,
        compute_metrics=corpus.compute_metrics,
        loss=metrics.cross_entropy if corpus.labels else metrics.squared_error,
        model=DEFAULT_MODEL,
        student="",
        training=FINE_TUNING | (FROM_SCRATCH if request.model in TEXT_MODELS else {}),
        from_scratch=FROM_SCRATCH,
        source=dataset.source,
        digest=splits_digest(splits.values()),
        is_limited=request.limit is not None,
        further_test_splits={name: split for name, split in splits.items() if name == "mismatched"},
        tokenizer=tokenizer.tokenizer,
    )


def _dataset(name: str, corpus: Corpus) -> PublicDataset:
    """Return where the corpus `name` is published."""
    return PublicDataset(
        f"glue/{name}",
        "nyu-mll/glue",
        subfolders=(name, "data"),
        splits=("train", corpus.test),
        optional_splits=(corpus.mismatched,) if corpus.mismatched else (),
    )


def _make_tensors(files: SplitFiles, corpus: Corpus, tokenizer: TableTokenizer, limit: int | None) -> Tensors:
    """Return the encoded texts `(n, longest)` and the targets `(n,)` of our splits, named `split.tensor`."""
    dtype = torch.long if corpus.labels else torch.float32
    tensors = {}
    for split, table in _split_tables(files, corpus, limit).items():
        encoded = tokenizer.tokenize(table, corpus.columns)
        encoded["targets"] = torch.tensor(table.column("label").to_pylist(), dtype=dtype)
        tensors.update({f"{split}.{name}": tensor for name, tensor in encoded.items()})
    return tensors


def _split_tables(files: SplitFiles, corpus: Corpus, limit: int | None) -> dict[str, pa.Table]:
    """Return the rows of each of our splits, at most `limit`."""
    published = {split: _read_split(parts, corpus) for split, parts in files.items()}
    if len(published["train"]) < 2:
        raise UserError(f"{files['train'][0]} holds one example; two or more are needed, to train and to validate.")
    train, validation = train_validation_indices(len(published["train"]))
    chosen = {"train": (published["train"], train), "validation": (published["train"], validation)}
    for split, name in (("test", corpus.test), ("mismatched", corpus.mismatched)):
        if name in published:
            chosen[split] = (published[name], fixed_permutation(len(published[name])))
    return {split: table.take(rows[:limit].numpy()) for split, (table, rows) in chosen.items()}


def _read_split(files: list[Path], corpus: Corpus) -> pa.Table:
    """Read the texts and labels of a published split."""
    table = tables.read_tables(files, list(corpus.columns), corpus.labels, corpus.interval)
    return tables.require_texts(table, corpus.columns, files[0] if len(files) == 1 else files[0].parent)


def _make_splits(tensors: Tensors, input_names: tuple[str, ...]) -> dict[str, Split]:
    """Make our splits from the tensors of `_make_tensors`."""
    return {
        split: Split(
            {name: tensors[f"{split}.{name}"] for name in input_names}, tensors[f"{split}.targets"], trim_padding
        )
        for split in ("train", "validation", "test", "mismatched")
        if f"{split}.targets" in tensors
    }
