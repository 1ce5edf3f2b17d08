"""The fields by which distillation methods choose teacher and student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compression import models
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.distill.students.copies import shallower_copy, thinner_copy
from compression.params import Place, group, param
from compression.training.hyperparameters import Training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from compression.tasks.task import Task
    from compression.training.context import Context


@dataclass(frozen=True)
class Distillation(Method):
    """A training on the outputs of other models."""

    family: ClassVar[str] = "distill"

    training: Training = group(Training)


@dataclass(frozen=True)
class StudentSelection(Distillation):
    """A distillation whose student is a named model, or a smaller copy of its teacher."""

    student: Place = param(
        "",
        "model name, runs:/…, models:/… or a folder; if empty, the model from earlier steps, else the task's small one",
    )
    width: float | None = param(
        None, "instead of student: the teacher with this share of its channels", interval="(0, 1]"
    )
    layers: int | None = param(
        None, "instead of student: the teacher with this number of its layers or residual blocks", interval="[1, inf)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        options = {"student": self.student, "width": self.width, "layers": self.layers}
        given = [f"{name}={value}" for name, value in options.items() if value]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} each say what the student is; give one of them.")

    def training_defaults(self, task: Task) -> Mapping[str, Any]:
        """The task's defaults; for a student that starts untrained, those for training from scratch."""
        # The task's own defaults are for weights that were trained before, as those of a pretrained transformer.
        is_untrained = self.student in models.MODELS or self.width is not None  # a copy of other width is built anew
        return {**task.training, **(task.from_scratch if is_untrained else {})}

    def build_student(self, model: nn.Module, teacher: nn.Module, context: Context) -> nn.Module:
        """The student to train, on the device; `model` is the one that the step before gave.

        Raises UserError where it cannot be built.
        """
        if self.student:
            student = context.build(self.student)
        elif self.width:
            student = thinner_copy(teacher, self.width)
        elif self.layers:
            student = shallower_copy(teacher, self.layers)
        else:
            student = model if context.model_changed else self.default_student(teacher, context)
        return student.to(context.device)

    def default_student(self, teacher: nn.Module, context: Context) -> nn.Module:  # noqa: ARG002 - overrides need it
        """The student where none is named; raises UserError where the task has no small model."""
        if not context.task.student:
            raise UserError(
                f"The task {context.task.name} has no small model of its own; "
                "name one, student=NAME or a folder, or take a copy of the teacher with layers=NUMBER."
            )
        return context.build(context.task.student)


@dataclass(frozen=True)
class TeacherStudent(StudentSelection):
    """A distillation with one teacher and one student."""

    teacher: Place = param("", "model name, runs:/…, models:/… or a folder; if empty, the model before the first step")

    def teacher_and_student(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        """The frozen teacher and the student to train; raises UserError where there is no such model."""
        teacher = freeze_teacher(context.load(self.teacher) if self.teacher else context.original, context)
        return teacher, self.build_student(model, teacher, context)

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError where teacher or student cannot be built."""
        self.teacher_and_student(model, context)


def freeze_teacher(teacher: nn.Module, context: Context) -> nn.Module:
    """`teacher` itself, now on the device, in eval mode and without gradients."""
    return teacher.to(context.device).eval().requires_grad_(False)
