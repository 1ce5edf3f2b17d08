"""GLUE: nine ways to test whether a model understands English.  Wang et al. 2019, arXiv:1804.07461.

The labels of the benchmark's own test splits are secret. So its validation split is our test split, and our
validation split is cut from its training data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.models import TEXT_MODELS
from compression.tasks import Request, metrics, tables
from compression.tasks.cache import Tensors, cached
from compression.tasks.sources import Files, Origin, find
from compression.tasks.splits import cut, digest, shuffled
from compression.tasks.task import Split, Task
from compression.tasks.text import Encoder, encoder, trim

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

MODEL = "bert-large-uncased"
FROM_SCRATCH = {"epochs": 5, "learning_rate": 2e-3}  # what differs for a model that is not pretrained


@dataclass(frozen=True)
class Corpus:
    """One of the nine: its text columns, its classes (none for regression), its official figure."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str = "accuracy"
    metrics: Callable[[Tensor, Tensor], dict[str, float]] = metrics.accuracy
    test: str = "validation"
    mismatched: str = ""  # a second test split, of other kinds of text


CORPORA = {
    "sst2": Corpus(("sentence",), ("negative", "positive")),
    "cola": Corpus(("sentence",), ("unacceptable", "acceptable"), "matthews_correlation", metrics.matthews_correlation),
    "mrpc": Corpus(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "f1", metrics.f1),
    "qqp": Corpus(("question1", "question2"), ("not_duplicate", "duplicate"), "f1", metrics.f1),
    "stsb": Corpus(("sentence1", "sentence2"), (), "pearson", metrics.correlations),
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


def glue(request: Request) -> Task:
    """The text as the tokenizer of the request's model reads it.

    MNLI has a second test split, `mismatched`, where the data has it.
    """
    name = request.name.removeprefix("glue/")
    corpus, reader = CORPORA[name], encoder(request.model or MODEL, MODEL)
    found = find(_origin(name, corpus), request.data)
    key = hashlib.sha256(f"{found.fingerprint()} {reader.fingerprint()} {request.limit}".encode())
    make = partial(_tensors, found.files, corpus, reader, request.limit)
    splits = _splits(cached(f"glue-{name}-{key.hexdigest()[:32]}", make), reader.names)
    return Task(
        request.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        outputs=len(corpus.labels) or 1,
        labels=corpus.labels,
        metric=corpus.metric,
        metrics=corpus.metrics,
        loss=metrics.cross_entropy if corpus.labels else metrics.squared_error,
        model=MODEL,
        student="",
        training={  # Devlin et al. 2018, arXiv:1810.04805, section 4.1 and appendix A.3
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 2e-5,
            "optimizer": "adamw",
            "schedule": "linear",
            "warmup": 0.1,
            "weight_decay": 0.01,
            "label_smoothing": 0.0,
            **(FROM_SCRATCH if request.model in TEXT_MODELS else {}),
        },
        from_scratch=FROM_SCRATCH,
        source=found.source,
        digest=digest(splits.values()),
        limited=request.limit is not None,
        also={name: split for name, split in splits.items() if name == "mismatched"},
        tokenizer=reader.tokenizer,
    )


def _origin(name: str, corpus: Corpus) -> Origin:
    return Origin(
        f"glue/{name}",
        "nyu-mll/glue",
        folders=(name, "data"),
        splits=("train", corpus.test),
        optional=(corpus.mismatched,) if corpus.mismatched else (),
    )


def _tensors(files: Files, corpus: Corpus, reader: Encoder, limit: int | None) -> Tensors:
    """The encoded texts and the targets of each of our splits, named `split.tensor`."""
    tensors = {}
    for split, table in _tables(files, corpus, limit).items():
        encoded = reader.encode(table, corpus.columns)
        kind = torch.long if corpus.labels else torch.float32
        encoded["targets"] = torch.tensor(table.column("label").to_pylist(), dtype=kind)
        tensors.update({f"{split}.{name}": tensor for name, tensor in encoded.items()})
    return tensors


def _tables(files: Files, corpus: Corpus, limit: int | None) -> dict[str, pa.Table]:
    """The rows of each of our splits, at most `limit`."""
    whole = {s: tables.read(parts, list(corpus.columns), corpus.labels) for s, parts in files.items()}
    train, validation = cut(len(whole["train"]))
    chosen = {"train": (whole["train"], train), "validation": (whole["train"], validation)}
    for ours, theirs in (("test", corpus.test), ("mismatched", corpus.mismatched)):
        if theirs in whole:
            chosen[ours] = (whole[theirs], shuffled(len(whole[theirs])))
    return {split: table.take(rows[:limit].numpy()) for split, (table, rows) in chosen.items()}


def _splits(tensors: Tensors, names: tuple[str, ...]) -> dict[str, Split]:
    return {
        split: Split({name: tensors[f"{split}.{name}"] for name in names}, tensors[f"{split}.targets"], trim)
        for split in ("train", "validation", "test", "mismatched")
        if f"{split}.targets" in tensors
    }
