"""Who teaches whom: the two fields that every distillation method has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.context import Context
from compression.errors import UserError
from compression.params import param


@dataclass(frozen=True)
class Pair:
    """Teacher and student, by name or place."""

    teacher: str = param("", "model name, runs:/…, models:/… or a folder; the model before the first step if empty")
    student: str = param("", "model name, runs:/…, models:/… or a folder; the chain's model, else the task's small one")

    def pair(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        """The teacher, frozen and in eval mode, and the student to train, both on the device."""
        teacher = context.load(self.teacher) if self.teacher else context.original
        student = self._student(model, context)
        return teacher.to(context.device).eval().requires_grad_(False), student.to(context.device)

    def _student(self, model: nn.Module, context: Context) -> nn.Module:
        if self.student:
            return context.build(self.student)
        if context.changed:
            return model
        if not context.task.student:
            raise UserError(
                f"The task {context.task.name} has no small model of its own; name one: student=NAME or a folder."
            )
        return context.build(context.task.student)
