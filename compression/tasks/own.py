"""A task from data that is in memory already, or comes out of a DataLoader: for those who call the lab from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from compression.errors import UserError, first_line
from compression.nn.inputs import map_inputs
from compression.tasks import contract, metrics
from compression.tasks.splits import splits_digest, train_validation_indices
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from compression.nn.inputs import Inputs

Data = DataLoader[Any] | Dataset[Any] | Split | Sequence[Any]

LABELS = ("labels", "label", "targets", "target")  # the entry of a batch of named tensors that holds the targets


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
    """Make a task of classification or regression from data as the model takes it, already normalized.

    Each split is a DataLoader, a Dataset, a pair of arrays or tensors `(inputs, targets)`, or batches of either form;
    inputs are a tensor, or named tensors for models that take those (`{"input_ids": …, "labels": …}`). Everything is
    read once and kept in memory, so a loader that augments at random would augment once: give it without, and
    `augment`, a function of a batch of inputs and a generator. `validation` is a tenth of `train` if it is left out.
    Whole numbers as targets are classes, and floats are numbers to predict unless there are `classes`: their names or
    their number; the largest target says how many there are otherwise. `training` are defaults for methods that train,
    in place of `contract.TRAINING`. Raises UserError for data of another form.
    """
    if augment is not None and not callable(augment):
        raise UserError(f"augment={augment!r} is no function of a batch of inputs and a generator.")
    splits = {"train": _split(train, "train"), "test": _split(test, "test")}
    if validation is not None:
        splits["validation"] = _split(validation, "validation")
    else:
        rows, held_out = train_validation_indices(len(splits["train"]))
        splits["validation"], splits["train"] = splits["train"].select(held_out), splits["train"].select(rows)
    is_regression = classes is None and all(split.targets.is_floating_point() for split in splits.values())
    labels: tuple[str, ...] = ()
    if not is_regression:
        splits = {name: _with_classes(split, name) for name, split in splits.items()}
        labels = _labels(classes, max(int(split.targets.max()) for split in splits.values()))
    inputs = splits["test"].inputs
    made = Task(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        outputs=len(labels) or 1,
        labels=labels,
        metric="accuracy" if labels else "pearson",
        compute_metrics=metrics.accuracy if labels else metrics.correlations,
        loss=metrics.cross_entropy if labels else metrics.squared_error,
        model="",
        student="",
        training=dict(training or {}),
        input_shape=tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else (),
        augment=augment,
        source="given in Python",
        digest=splits_digest(splits[each] for each in ("train", "validation", "test")),
    )
    return contract.complete(made, "lab.task")


def _labels(classes: Any, largest: int) -> tuple[str, ...]:
    """The names of the classes. Raises UserError if there are targets beyond them, or if they are no list of names."""
    if classes is None or isinstance(classes, Integral):
        classes = range(largest + 1 if classes is None else int(classes))
    if isinstance(classes, (str, Mapping, set, frozenset)) or not isinstance(classes, Iterable):
        raise UserError(f"classes={classes!r} is no list: give the names in the order of the targets, or their number.")
    labels = tuple(map(str, classes))
    if largest >= len(labels):
        raise UserError(f"A target is {largest}; with {len(labels)} classes, targets are 0 to {len(labels) - 1}.")
    if len(labels) < 2:
        raise UserError("There is one class only: a classifier needs two.")
    return labels


def _with_classes(split: Split, name: str) -> Split:
    """The split with its targets as int64. Raises UserError if one is no whole number from 0."""
    targets = split.targets
    if targets.ndim != 1 or not bool((targets >= 0).all()) or not torch.equal(targets, targets.long().to(targets)):
        raise UserError(f"The targets of {name} have to be classes, one whole number from 0 for each example.")
    return replace(split, targets=targets.long())


def _split(data: Data, name: str) -> Split:
    """Read a split. Raises UserError if it is empty, or no pairs of inputs and targets."""
    if isinstance(data, Split):
        return data
    batches = _batches(data, name)
    if not sum(len(targets) for _, targets in batches):
        raise UserError(f"The split {name} has no examples.")
    try:
        targets = torch.cat([targets for _, targets in batches])
        inputs = _join([inputs for inputs, _ in batches])
    except (RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"The batches of {name} do not fit together: {first_line(error)}") from error
    # A column of targets is a target for each example.
    targets = targets.squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 else targets
    return Split(inputs, targets if targets.is_floating_point() else targets.long(), _as_stored)


def _as_stored(inputs: Inputs) -> Inputs:
    return inputs


def _batches(data: Any, name: str) -> list[tuple[Inputs, Tensor]]:
    """The batches of a loader or of a list, the examples of a dataset as batches of one, a pair as one batch."""
    if isinstance(data, Mapping) or (isinstance(data, (tuple, list)) and len(data) == 2 and all(map(_is_array, data))):
        return [_batch(data, name)]
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        given: Iterable[Any] = (data[i] for i in range(len(data)))  # to iterate over a Dataset need not come to an end
    elif isinstance(data, Iterable):
        given = data
    else:
        raise UserError(
            f"The split {name} is a {type(data).__name__}; give a DataLoader, a Dataset or a pair of arrays."
        )
    return [_as_batch(*_batch(each, name), from_dataset=isinstance(data, Dataset)) for each in given]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _as_batch(inputs: Inputs, targets: Tensor, from_dataset: bool) -> tuple[Inputs, Tensor]:
    """A batch as it is; an example as a batch of one: with one target, or not as many targets as rows of inputs."""
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    if targets.ndim and first.ndim and len(first) == len(targets) and not (from_dataset and len(targets) == 1):
        return inputs, targets
    return map_inputs(lambda tensor: tensor[None], inputs), targets[None]


def _batch(batch: Any, name: str) -> tuple[Inputs, Tensor]:
    """Inputs and targets of a batch or an example. Raises UserError if it is neither a pair nor named tensors."""
    if isinstance(batch, Mapping):
        if key := next((key for key in LABELS if key in batch), ""):
            return {n: _tensor(v, name) for n, v in batch.items() if n != key}, _tensor(batch[key], name)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        if isinstance(inputs, Mapping):
            return {n: _tensor(v, name) for n, v in inputs.items()}, _tensor(targets, name)
        return _tensor(inputs, name), _tensor(targets, name)
    raise UserError(
        f"The split {name} has to give pairs of inputs and targets, or named tensors with one of {', '.join(LABELS)}; "
        f"it gives a {type(batch).__name__}."
    )


def _tensor(value: Any, name: str) -> Tensor:
    """`value` as a tensor, float32 where it is of float64. Raises UserError if it is no numbers, an image say."""
    try:
        tensor = torch.as_tensor(np.array(value) if _is_array(value) and not isinstance(value, Tensor) else value)
        if tensor.is_complex():
            raise TypeError("its numbers are complex")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The split {name} holds a {type(value).__name__}, which is no tensor ({first_line(error)}): give tensors, "
            "numbers or arrays of numbers (for images, a transform such as torchvision's ToTensor)."
        ) from error
    tensor = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _join(parts: Sequence[Inputs]) -> Inputs:
    """Put batches together; those of texts with different lengths are padded at their ends.

    Raises RuntimeError, KeyError or TypeError if they do not fit, and UserError for texts of different lengths
    without an attention mask.
    """
    tensors = [part for part in parts if isinstance(part, Tensor)]
    named = [part for part in parts if isinstance(part, dict)]
    if tensors and named:
        raise TypeError("some hold a tensor, and some named tensors")
    if tensors:
        return torch.cat(tensors)
    different = [key for key in named[0] if len({part[key].shape[1:] for part in named}) > 1]
    if different and "attention_mask" not in named[0]:
        raise UserError(
            f"Texts of different lengths ({', '.join(different)}) need an attention_mask, which tells padding from "
            "text; or pad all to one length."
        )
    padding = _padding(named)
    return {key: _cat_padded([part[key] for part in named], padding if key == "input_ids" else 0) for key in named[0]}


def _padding(batches: Sequence[dict[str, Tensor]]) -> int:
    """The token that the batches pad with themselves, where a mask is 0; 0 if they pad nothing."""
    for batch in batches:
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is not None and mask is not None and ids.shape == mask.shape and not bool(mask.all()):
            return int(ids[mask == 0][0])
    return 0


def _cat_padded(parts: Sequence[Tensor], value: int) -> Tensor:
    length = max(part.shape[-1] for part in parts) if parts[0].ndim > 1 else 0
    padded = [functional.pad(p, (0, length - p.shape[-1]), value=value) if length else p for p in parts]
    return torch.cat(padded)
