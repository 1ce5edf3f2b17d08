"""What a task of somebody's own has to be, from a file or from Python, and the hyperparameters it may leave out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from compression.errors import UserError
from compression.nn.inputs import IGNORED, answer_rows
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

TRAINING: Mapping[str, Any] = {  # the hyperparameters that a task's own `training` leaves out
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "schedule": "onecycle",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
}


def complete(task: Task, place: str) -> Task:
    """Return the task with the hyperparameters that it leaves out; `place` says in a refusal where it comes from.

    Raises UserError for splits, targets, classes or a metric that runs would stumble over later, and whatever the
    task's own `compute_metrics` raises.
    """
    for name, split in {**task.splits(), **task.further_test_splits}.items():
        _check_split(task, name, split, place)
    if task.labels and len(task.labels) != task.outputs:
        raise UserError(f"{place} has {task.outputs} outputs and {len(task.labels)} labels; give a name to each class.")
    if twice := [label for label, count in Counter(task.labels).items() if count > 1]:
        raise UserError(f"{place} calls two classes {twice[0]!r}; give each a name of its own.")
    scores, targets = task.scores(task.test), task.test.targets
    scores.add(*answer_rows(torch.zeros(*targets.shape, task.outputs), targets))
    if task.metric not in (metrics := scores.metrics()):
        raise UserError(f"compute_metrics of {place} gives {', '.join(metrics)}, and not its metric {task.metric!r}.")
    return replace(task, training={**TRAINING, **task.training})


def _check_split(task: Task, name: str, split: Split, place: str) -> None:
    if not isinstance(split, Split) or not len(split):
        raise UserError(f"The {name} split of {place} holds no examples.")
    inputs = split.inputs if isinstance(split.inputs, dict) else {"inputs": split.inputs}
    for key, tensor in inputs.items():
        if len(tensor) != len(split):
            raise UserError(f"The {name} split of {place} has {len(split)} targets and another number of inputs.")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            row = int((~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[0])
            raise UserError(f"The {key} of the {name} split of {place} are not all finite numbers: example {row}.")
    _check_targets(task, name, split, place)


def _are_tokens(split: Split) -> bool:
    """Whether there is a target for each token of the inputs."""
    ids = split.inputs.get("input_ids") if isinstance(split.inputs, dict) else None
    return ids is not None and ids.shape == split.targets.shape and split.targets.dtype == torch.int64


def _check_targets(task: Task, name: str, split: Split, place: str) -> None:
    """Raise UserError for targets that are no numbers, or no classes of the task."""
    targets = split.targets
    if targets.ndim != 1 and not _are_tokens(split):
        raise UserError(
            f"The {name} targets of {place} have the shape {tuple(targets.shape)}; it takes one target for each "
            "example, a class or a number, or an int64 one for each of its input_ids."
        )
    if targets.ndim == 2:
        targets = targets[targets != IGNORED]  # of a language task
    if task.outputs == 1:
        if not targets.is_floating_point() or not bool(targets.isfinite().all()):
            raise UserError(f"The {name} targets of {place} have to be finite float32 numbers, as it has one output.")
    elif targets.dtype != torch.int64 or bool((targets < 0).any() or (targets >= task.outputs).any()):
        raise UserError(f"The {name} targets of {place} have to be int64 classes from 0 to {task.outputs - 1}.")
