"""Distillation from several teachers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.logits.figures import log_softened_outputs
from compression.methods.distill.logits.training import train_on_logits
from compression.methods.distill.response import SoftenedLogits, soft_losses
from compression.methods.distill.students.teacher_student import StudentSelection, freeze_teacher
from compression.params import Place, param

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.training.context import Context

WEIGHTINGS = ("mean", "weighted", "confidence")


@dataclass(frozen=True)
class MultiTeacher(StudentSelection, SoftenedLogits):
    """Train the student on the softened outputs of several teachers.  You et al. 2017 (KDD); weighted by
    each one's confidence: Zhang et al. 2022, arXiv:2201.00007.
    """

    teachers: tuple[Place, ...] = param(
        (), "model names, runs:/…, models:/… or folders with // between them; if empty, the model before the first step"
    )
    weighting: str = param(
        "mean",
        "weights of the teachers: equal, as given in weights, or for each example the larger, the smaller its error",
        choices=WEIGHTINGS,
        search=("mean", "confidence"),
    )
    weights: tuple[float, ...] = param(
        (), "a number for each teacher, with / between them", interval="(0, inf)", when={"weighting": ("weighted",)}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.weighting == "weighted") != bool(self.weights):
            raise UserError(
                f"weighting={self.weighting} and weights={'/'.join(map(str, self.weights))} do not go together; "
                "weighting=weighted takes a number for each teacher, weights=2/1, and the others take none."
            )
        if self.weights and len(self.weights) != (count := max(1, len(self.teachers))):
            raise UserError(f"weights has {len(self.weights)} numbers for {count} teachers; give {count}.")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the student on the labels and on the logits of all teachers."""
        teachers, student = self.teachers_and_student(model, context)
        if len(teachers) == 1:
            context.record.warn("There is only one teacher, so this is response; name more: teachers=ONE//OTHER.")
        training, logits_loss = self.training_for(context.task), self.logits_loss(context.task)
        student = train_on_logits(student, self.active_teachers(teachers), context, training, logits_loss)
        log_softened_outputs(context, teachers, student, self.temperature)
        return student

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError where a teacher or the student cannot be built."""
        self.teachers_and_student(model, context)

    def teachers_and_student(self, model: nn.Module, context: Context) -> tuple[list[nn.Module], nn.Module]:
        """The frozen teachers, and the student to train; a smaller copy is one of the first teacher."""
        found = [context.load(place) for place in self.teachers] or [context.original]
        teachers = [freeze_teacher(teacher, context) for teacher in found]
        return teachers, self.build_student(model, teachers[0], context)

    def teacher_loss(self, student: Tensor, teachers: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The mean over the examples of the weighted losses of the teachers."""
        # (teachers, batch)
        losses = torch.stack([soft_losses(student, teacher, self.temperature) for teacher in teachers])
        # (teachers, batch) -> (batch,) -> scalar
        return (self.teacher_weights(teachers, targets) * losses).sum(0).mean()

    def teacher_weights(self, teachers: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Weights of the teachers, `(teachers, batch)` or `(teachers, 1)`, with sum 1 over the teachers."""
        if self.weighting == "confidence" and len(teachers) > 1:
            return confidence_weights(torch.stack([teacher_errors(logits, targets) for logits in teachers]))
        given = list(self.weights) if self.weights else [1.0] * len(teachers)
        return (targets.new_tensor(given, dtype=torch.float32) / sum(given)).unsqueeze(1)


def teacher_errors(logits: Tensor, targets: Tensor) -> Tensor:
    """The error of each example, `(batch,)`: cross-entropy, or the squared difference in a regression."""
    if logits.shape[1] == 1:
        return (logits.squeeze(1) - targets).square()
    return F.cross_entropy(logits, targets, reduction="none")


def confidence_weights(errors: Tensor) -> Tensor:
    """Weights of two or more teachers for each example from their errors, both `(teachers, batch)`.

    (1 - softmax of the errors over the teachers) / (teachers - 1); Zhang et al. 2022, section 2.
    """
    # Over n teachers, 1 - softmax adds up to n - 1.
    return (1 - errors.softmax(0)) / (len(errors) - 1)
