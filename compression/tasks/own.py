"""A task from data that is in memory already, or comes out of a DataLoader: for those who call the lab from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from compression.errors import UserError
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.splits import splits_digest, train_validation_indices
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from compression.nn.inputs import Inputs

Data = DataLoader[Any] | Dataset[Any] | Split | Sequence[Any]

LABELS = ("labels", "label", "targets", "target")  # the entry of a batch of named tensors that holds the targets
TRAINING = {
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 0.01,
    "optimizer": "sgd",
    "schedule": "onecycle",
    "warmup": 0.3,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
}


def task(
    *,
    train: Data,
    test: Data,
    validation: Data | None = None,
    classes: Sequence[str] | int | None = None,
    name: str = "own",
    training: Mapping[str, Any] | None = None,
    augment: Callable[[Any, torch.Generator], Any] | None = None,
) -> Task:
    """Make a task of classification from data as the model takes it, already normalized.

    Each split is a DataLoader, a Dataset, a pair of tensors `(inputs, targets)`, or batches of either form; inputs are
    a tensor, or named tensors for models that take those (`{"input_ids": …, "labels": …}`). Everything is read once and
    kept in memory, so a loader that augments at random would augment once: give it without, and `augment`, a function
    of a batch of inputs and a generator. `validation` is a tenth of `train` if it is left out. `classes` are the names
    of the classes or their number; the largest target says how many there are otherwise. `training` are defaults for
    methods that train, in place of TRAINING. Raises UserError for data of another form.
    """
    splits = {"train": _split(train, "train"), "test": _split(test, "test")}
    if validation is not None:
        splits["validation"] = _split(validation, "validation")
    else:
        rows, held_out = train_validation_indices(len(splits["train"]))
        splits["validation"], splits["train"] = splits["train"].select(held_out), splits["train"].select(rows)
    largest = max(int(split.targets.max()) for split in splits.values())
    labels = _labels(classes, largest)
    inputs = splits["test"].inputs
    return Task(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        outputs=len(labels),
        labels=labels,
        metric="accuracy",
        compute_metrics=accuracy,
        loss=cross_entropy,
        model="",
        student="",
        training={**TRAINING, **(training or {})},
        input_shape=tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else (),
        augment=augment,
        source="given in Python",
        digest=splits_digest(splits[each] for each in ("train", "validation", "test")),
    )


def _labels(classes: Sequence[str] | int | None, largest: int) -> tuple[str, ...]:
    """The names of the classes. Raises UserError if there are targets beyond them."""
    numbered = range(largest + 1 if classes is None else classes) if not isinstance(classes, Sequence) else classes
    labels = tuple(map(str, numbered))
    if largest >= len(labels):
        raise UserError(f"A target is {largest}; with {len(labels)} classes, targets are 0 to {len(labels) - 1}.")
    if len(labels) < 2:
        raise UserError("There is one class only: a classifier needs two.")
    return labels


def _split(data: Data, name: str) -> Split:
    """Read a split. Raises UserError if it is empty, or no pairs of inputs and targets."""
    if isinstance(data, Split):
        return data
    batches = [_batch(batch, name) for batch in _batches(data)]
    if not batches or not sum(len(targets) for _, targets in batches):
        raise UserError(f"The split {name} has no examples.")
    targets = torch.cat([targets for _, targets in batches]).long()
    if targets.ndim != 1 or bool((targets < 0).any()):
        raise UserError(f"The targets of {name} have to be classes, one whole number from 0 for each example.")
    return Split(_join([inputs for inputs, _ in batches], name), targets, _as_stored)


def _as_stored(inputs: Inputs) -> Inputs:
    return inputs


def _batches(data: Any) -> Iterable[Any]:
    """The batches of a loader or of a list of them; the examples of a dataset as batches; a pair as one batch."""
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(each, Tensor) for each in data):
        return [data]
    if isinstance(data, Dataset) or hasattr(data, "__getitem__"):
        examples = [data[i] for i in range(len(data))]
        is_batched = (
            bool(examples) and isinstance(_batch(examples[0], "")[1], Tensor) and _batch(examples[0], "")[1].ndim
        )
        return examples if is_batched else [default_collate(examples)] if examples else []
    batches: Iterable[Any] = data
    return batches


def _batch(batch: Any, name: str) -> tuple[Inputs, Tensor]:
    """Inputs and targets of a batch or an example. Raises UserError if it is neither a pair nor named tensors."""
    if isinstance(batch, Mapping):
        if key := next((key for key in LABELS if key in batch), ""):
            return {n: torch.as_tensor(v) for n, v in batch.items() if n != key}, torch.as_tensor(batch[key])
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        named = isinstance(inputs, Mapping)
        return dict(inputs) if named else torch.as_tensor(inputs), torch.as_tensor(targets)
    raise UserError(
        f"The split {name} has to give pairs of inputs and targets, or named tensors with one of {', '.join(LABELS)}; "
        f"it gives a {type(batch).__name__}."
    )


def _join(parts: Sequence[Inputs], name: str) -> Inputs:
    """Put batches together; named tensors of different lengths are padded with zeros at their ends."""
    try:
        if isinstance(parts[0], Tensor):
            return torch.cat([part for part in parts if isinstance(part, Tensor)])
        named = [part for part in parts if isinstance(part, dict)]
        return {key: _cat_padded([part[key] for part in named]) for key in parts[0]}
    except (RuntimeError, KeyError) as error:
        raise UserError(f"The batches of {name} do not fit together: {error}") from error


def _cat_padded(parts: Sequence[Tensor]) -> Tensor:
    length = max(part.shape[-1] for part in parts) if parts[0].ndim > 1 else 0
    return torch.cat([torch.nn.functional.pad(p, (0, length - p.shape[-1])) if length else p for p in parts])
