"""Learning from teachers' logits. A teacher is asked once where its answer cannot change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.logits.teacher_time import TeacherTime
from compression.nn.inputs import Inputs, forward
from compression.tasks.task import Task
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import augmentation, epoch_batches, fit

# (the student's logits, those of each teacher, targets) -> the loss, a scalar
Judge = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]

KEPT_BYTES = 2**30  # the most logits that are kept: beyond it (a million examples of 256 classes) they are asked anew


def learn(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    context: Context,
    training: Training,
    judge: Judge,
    name: str = "",
) -> nn.Module:
    """Train `student` in place by what `judge` says of its logits beside those of its frozen teachers.

    A teacher is asked once for each view of an example: without augmentation there is one, with it `training.views`,
    and where these are new in every epoch it is asked once a batch. The share of time that teachers took is recorded
    as `teacher_time_share`.
    """
    taken = TeacherTime(context.device)
    kept: dict[int, list[Tensor]] = {}

    def beside(epoch: int) -> list[Tensor]:
        seen = training.augmentation_seed(epoch) if varied(context, training) else 0
        with taken.asked():
            kept[seen] = kept.get(seen) or answers(teachers, context, training, seen)
        return kept[seen]

    def loss(student: nn.Module, inputs: Inputs, targets: Tensor, *known: Tensor) -> Tensor:
        with taken.asked():
            right = known or ask(teachers, inputs)
        return judge(forward(student, inputs), right, targets)

    keeps = teachers and can_keep(teachers, context, training)
    student = fit(student, context, training, loss=loss, per_example=beside if keeps else None, name=name)
    taken.keep(context)
    return student


def varied(context: Context, training: Training) -> bool:
    """Whether the training examples are augmented."""
    return augmentation(context.task, training, torch.Generator()) is not None


def can_keep(teachers: Sequence[nn.Module], context: Context, training: Training) -> bool:
    """Whether the teachers are shown a fixed set of views, and all their logits may be kept."""
    task, views = context.task, training.views if varied(context, training) else 1
    return bool(views) and views * len(task.train) * task.outputs * 4 * len(teachers) <= KEPT_BYTES


@torch.no_grad()
def answers(teachers: Sequence[nn.Module], context: Context, training: Training, epoch: int) -> list[Tensor]:
    """The logits `(n, outputs)` of each teacher on the training examples as an epoch shows them, in stored order."""
    size = len(context.task.train), context.task.outputs
    known = [torch.zeros(size, device=context.device) for _ in teachers]
    with context.accelerator.autocast():
        for inputs, places in shown(context, training, epoch):
            for rows, logits in zip(known, ask(teachers, inputs), strict=True):
                rows[places] = logits.float()
    return known


def shown(context: Context, training: Training, epoch: int) -> Iterator[tuple[Inputs, Tensor]]:
    """The inputs of an epoch, with their places in the stored order; without augmentation of every epoch at once."""
    train, size = context.task.train.to(context.device), training.batch_size
    places = torch.arange(len(train), device=context.device)
    if varied(context, training):
        yield from ((inputs, rows) for inputs, _, rows in epoch_batches(train, [places], context, training, epoch))
    else:
        assert size is not None
        yield from zip((inputs for inputs, _ in train.batches(size)), places.split(size), strict=True)


@torch.no_grad()
def ask(teachers: Sequence[nn.Module], inputs: Inputs) -> list[Tensor]:
    """The logits of each teacher for a batch."""
    return [forward(teacher, inputs) for teacher in teachers]


def label_loss(task: Task, training: Training) -> Callable[[Tensor, Tensor], Tensor]:
    """The task's own loss of logits and targets, with the training's label smoothing."""
    return partial(task.loss, label_smoothing=training.label_smoothing or 0.0)


def require_classes(task: Task, what: str) -> None:
    """UserError where the task is a regression."""
    if task.outputs == 1:
        raise UserError(f"{what} is about classes, and {task.name} has none; use response.")
