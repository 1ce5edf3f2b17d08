"""Learning from teachers' logits. A teacher is asked once for each example where its answer cannot change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compression.context import Context
from compression.errors import UserError
from compression.methods.distill.teacher_time import TeacherTime
from compression.tasks.task import Inputs, Task, forward
from compression.training import Recipe, augmentation, complete, fit

# (the student's logits, those of each teacher, targets) -> the loss, a scalar
Judge = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]

KEPT_BYTES = 2**30  # the most logits that are kept: beyond it (a million examples of 256 classes) they are asked anew


def learn(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    context: Context,
    recipe: Recipe,
    judge: Judge,
    name: str = "",
) -> nn.Module:
    """Train `student` in place by what `judge` says of its logits beside those of its frozen teachers.

    Without augmentation a teacher gives the same answer in every epoch, so it is asked once; otherwise once a batch.
    The share of time that teachers took is recorded as `teacher_time_share`.
    """
    taken = TeacherTime(context.device)
    with taken.asked():
        kept = answers(teachers, context, recipe) if teachers and can_keep(teachers, context, recipe) else []

    def loss(student: nn.Module, inputs: Inputs, targets: Tensor, *known: Tensor) -> Tensor:
        with taken.asked():
            right = known or ask(teachers, inputs)
        return judge(forward(student, inputs), right, targets)

    student = fit(student, context, recipe, loss=loss, beside=kept, name=name)
    taken.keep(context)
    return student


def can_keep(teachers: Sequence[nn.Module], context: Context, recipe: Recipe) -> bool:
    """Whether every epoch shows the teachers the same examples, and all their logits may be kept."""
    task = context.task
    unvaried = augmentation(task, recipe, torch.Generator()) is None
    return unvaried and len(task.train) * task.outputs * 4 * len(teachers) <= KEPT_BYTES


@torch.no_grad()
def answers(teachers: Sequence[nn.Module], context: Context, recipe: Recipe) -> list[Tensor]:
    """The logits `(n, outputs)` of each teacher on all training examples, in their stored order, as in training."""
    size = complete(recipe, context.task).batch_size
    assert size is not None
    with context.accelerator.autocast():
        asked = [ask(teachers, inputs) for inputs, _ in context.task.train.to(context.device).batches(size)]
    return [torch.cat(one) for one in zip(*asked, strict=True)]


@torch.no_grad()
def ask(teachers: Sequence[nn.Module], inputs: Inputs) -> list[Tensor]:
    """The logits of each teacher for a batch."""
    return [forward(teacher, inputs) for teacher in teachers]


def label_loss(task: Task, recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """The task's own loss of logits and targets, with the recipe's label smoothing."""
    return partial(task.loss, label_smoothing=complete(recipe, task).label_smoothing or 0.0)


def require_classes(task: Task, what: str) -> None:
    """UserError where the task is a regression."""
    if task.outputs == 1:
        raise UserError(f"{what} is about classes, and {task.name} has none; use response.")
