"""Learning from a teacher's layers beside its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.layers.features import Pairs, captured, layer_pairs, there
from compression.methods.distill.logits import pictures
from compression.methods.distill.logits.lesson import Judge
from compression.methods.distill.logits.teacher_time import TeacherTime
from compression.methods.distill.response import Response
from compression.nn.inputs import Inputs, forward
from compression.params import param
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import fit

Outputs = Mapping[str, Tensor]  # layer name -> what it gave for a batch


class Comparison(nn.Module):
    """How far pairs of layers are apart. A module, as it may have weights that learn along with the student."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs

    def watched(self) -> tuple[list[str], list[str]]:
        """The layers whose outputs it needs, of the teacher and of the student."""
        return [teacher for teacher, _ in self.pairs], [student for _, student in self.pairs]

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        """A scalar from what the teacher's and the student's layers gave.

        `tokens`, bool `(batch, length)`, tells text from padding; it is None for images.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Layered(Response):
    """What methods share that compare layers: the loss of response, and a comparison added to it.

    The teacher is asked once a batch: outputs of layers are too large to keep.
    """

    pairs: tuple[tuple[str, str], ...] = param(
        (), "layers to compare, teacher's:student's with / between pairs; the last of each stage, or evenly, if empty"
    )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher, student = self.pair(model, context)
        comparison = self.comparison(teacher, student, context)
        student = learn_layers(
            student, teacher, comparison, context, self.training_for(context.task), self.judge(context.task)
        )
        pictures.keep_softened(context, [teacher], student, self.temperature)
        pictures.keep_features(context, teacher, student, comparison.pairs)
        return student

    def check(self, model: nn.Module, context: Context) -> None:
        self.comparison(*self.pair(model, context), context)

    def comparison(self, teacher: nn.Module, student: nn.Module, context: Context) -> Comparison:
        """What is compared, by what measure."""
        raise NotImplementedError

    def layers_to_compare(self, teacher: nn.Module, student: nn.Module) -> Pairs:
        return layer_pairs(self.pairs, teacher, student)


def learn_layers(
    student: nn.Module,
    teacher: nn.Module,
    comparison: Comparison,
    context: Context,
    training: Training,
    judge: Judge,
    name: str = "",
) -> nn.Module:
    """Train `student` in place by what `judge` says of the logits, and a comparison of layers added to it.

    The share of time that the teacher took is recorded as `teacher_time_share`.
    """
    taken, (theirs, ours) = TeacherTime(context.device), comparison.watched()

    def loss(runner: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with taken.asked(), torch.no_grad(), captured(teacher, theirs) as known:
            right = forward(teacher, inputs)
        with captured(student, ours) as seen:
            answer = forward(runner, inputs)
        return judge(answer, [right], targets) + comparison(known, seen, there(inputs))

    trained = fit(student, context, training, loss=loss, extra=comparison, name=name)
    taken.keep(context)
    return trained


def smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both images `(batch, channels, height, width)` pooled to the height and width of the smaller one."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)


def require_same_kind(pairs: Pairs, known: Outputs, seen: Outputs) -> None:
    """UserError where one layer of a pair gives images and the other texts or vectors."""
    for teacher, student in pairs:
        if known[teacher].ndim != seen[student].ndim:
            shapes = [list(known[teacher].shape), list(seen[student].shape)]
            raise UserError(
                f"The teacher's {teacher} and the student's {student} cannot be compared: they give {shapes[0]} and "
                f"{shapes[1]}; name layers of one kind in pairs=."
            )
