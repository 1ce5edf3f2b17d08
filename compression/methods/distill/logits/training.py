"""Training a student on the logits of teachers, which are cached where the same views of the data come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.logits.teacher_time import TeacherTimer
from compression.nn.inputs import Inputs, answer_rows, answers, forward
from compression.training.loop import augmentation, epoch_batches, fit

if TYPE_CHECKING:
    from compression.tasks.task import Task
    from compression.training.context import Context
    from compression.training.hyperparameters import Training

# (student logits, logits of each teacher, targets) -> a scalar; logits `(batch, classes)`
LogitsLoss = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]

CACHE_BYTES = 2**30  # the most that cached logits may take: a million examples of 256 classes


def train_on_logits(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    context: Context,
    training: Training,
    logits_loss: LogitsLoss,
    name: str = "",
) -> nn.Module:
    """Train `student` in place with a loss of its logits and those of its frozen teachers; returns it in eval mode.

    Teachers see each view of an example once (without augmentation there is one, with it `training.views`), unless
    their logits exceed CACHE_BYTES; where views are new in every epoch, they see every batch. The share of the time
    spent in teachers is recorded as `teacher_time_share`.
    """
    timer = TeacherTimer(context.device)
    # Asking the teacher for every batch makes an epoch 1.7 times as long (ResNet-20 for ResNet-8, CIFAR-10).
    cache: dict[int, list[Tensor]] = {}

    def per_example(epoch: int) -> list[Tensor]:
        view = training.augmentation_seed(epoch) if is_augmented(context, training) else 0
        if view not in cache:
            with timer.measure():
                cache[view] = epoch_teacher_logits(teachers, context, training, view)
        return cache[view]

    def loss(student: nn.Module, inputs: Inputs, targets: Tensor, *cached: Tensor) -> Tensor:
        with timer.measure():
            # () where nothing is cached
            of_teachers = [answer_rows(each, targets)[0] for each in cached or teacher_logits(teachers, inputs)]
        logits, wanted = answers(student, inputs, targets)
        return logits_loss(logits, of_teachers, wanted)

    is_cached = teachers and can_cache(teachers, context, training)
    student = fit(student, context, training, loss=loss, per_example=per_example if is_cached else None, name=name)
    timer.log_share(context)
    return student


def is_augmented(context: Context, training: Training) -> bool:
    """Whether the training examples are augmented."""
    return augmentation(context.task, training, torch.Generator()) is not None


def can_cache(teachers: Sequence[nn.Module], context: Context, training: Training) -> bool:
    """Whether there is a fixed set of views, and the logits of all teachers on all of them fit into CACHE_BYTES."""
    task, views = context.task, training.views if is_augmented(context, training) else 1
    # 4 bytes a logit
    return bool(views) and views * task.train.targets.numel() * task.outputs * 4 * len(teachers) <= CACHE_BYTES


@torch.no_grad()
def teacher_logits(teachers: Sequence[nn.Module], inputs: Inputs) -> list[Tensor]:
    """The logits of each teacher for a batch, as `nn.inputs.forward` gives them."""
    return [forward(teacher, inputs) for teacher in teachers]


@torch.no_grad()
def epoch_teacher_logits(
    teachers: Sequence[nn.Module], context: Context, training: Training, epoch: int
) -> list[Tensor]:
    """The logits of each teacher on the training examples as augmented in `epoch`, in stored order.

    Of the shape of the targets and `outputs`: `(n, outputs)`, for language `(n, length, outputs)`.
    """
    size = *context.task.train.targets.shape, context.task.outputs
    # Each process fills in the rows of its own share, which is the same share whenever the view comes again.
    found = [torch.zeros(size, device=context.device) for _ in teachers]
    with context.accelerator.autocast():
        for inputs, indices in epoch_inputs(context, training, epoch):
            for rows, logits in zip(found, teacher_logits(teachers, inputs), strict=True):
                rows[indices] = logits.float()  # half precision under autocast
    return found


def epoch_inputs(context: Context, training: Training, epoch: int) -> Iterator[tuple[Inputs, Tensor]]:
    """The inputs of an epoch in batches, with their indices `(batch,)` in the stored order."""
    train, size = context.task.train.to(context.device), training.batch_size
    indices = torch.arange(len(train), device=context.device)
    # Augmentation draws from one generator, batch after batch: only the epoch's own batches give examples the same.
    if is_augmented(context, training):
        yield from ((inputs, rows) for inputs, _, rows in epoch_batches(train, [indices], context, training, epoch))
    else:
        assert size is not None
        yield from zip((inputs for inputs, _ in train.batches(size)), torch.split(indices, size), strict=True)


def label_loss(task: Task, training: Training) -> Callable[[Tensor, Tensor], Tensor]:
    """The task's own loss of logits and targets, with the training's label smoothing."""
    return partial(task.loss, label_smoothing=training.label_smoothing or 0.0)


def require_classes(task: Task, what: str) -> None:
    """Raise UserError if the task is a regression; `what` names the option that needs classes."""
    if task.outputs == 1:
        raise UserError(f"{what} needs a task with classes, and {task.name} is a regression; use response.")
