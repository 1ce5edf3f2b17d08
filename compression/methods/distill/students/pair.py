"""Who learns, and from whom: the fields that distillation methods have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.distill.students.copies import shallower, thinner
from compression.params import group, param
from compression.tasks.task import Task
from compression.training.context import Context
from compression.training.hyperparameters import Training


@dataclass(frozen=True)
class Distillation(Method):
    """A training with somebody else's answers."""

    family: ClassVar[str] = "distill"

    training: Training = group(Training)


@dataclass(frozen=True)
class Learner(Distillation):
    """A student: by name or place, or cut from its teacher."""

    student: str = param("", "model name, runs:/…, models:/… or a folder; the chain's model, else the task's small one")
    width: float | None = param(
        None, "in place of student: the teacher with this share of its channels", interval="(0, 1]"
    )
    layers: int | None = param(
        None, "in place of student: the teacher with so many of its layers or residual blocks", interval="[1, inf)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        said = {"student": self.student, "width": self.width, "layers": self.layers}
        given = [f"{name}={value}" for name, value in said.items() if value]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} each say what the student is; give one of them.")

    def training_defaults(self, task: Task) -> Mapping[str, Any]:
        """Those of the task; of a student that begins untrained, those for training from scratch."""
        return {**task.training, **(task.from_scratch if self.student in models.MODELS else {})}

    def learner(self, model: nn.Module, teacher: nn.Module, context: Context) -> nn.Module:
        """The student to train, on the device; `model` is the chain's."""
        return self._chosen(model, teacher, context).to(context.device)

    def _chosen(self, model: nn.Module, teacher: nn.Module, context: Context) -> nn.Module:
        if self.student:
            return context.build(self.student)
        if self.width:
            return thinner(teacher, self.width)
        if self.layers:
            return shallower(teacher, self.layers)
        if context.model_changed:
            return model
        return self.small(teacher, context)

    def small(self, teacher: nn.Module, context: Context) -> nn.Module:
        """The student where none was asked for; UserError where the task has no small model."""
        if not context.task.student:
            raise UserError(
                f"The task {context.task.name} has no small model of its own; "
                "name one, student=NAME or a folder, or take a copy of the teacher with layers=NUMBER."
            )
        return context.build(context.task.student)


@dataclass(frozen=True)
class Pair(Learner):
    """A student and its teacher."""

    teacher: str = param("", "model name, runs:/…, models:/… or a folder; the model before the first step if empty")

    def pair(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        """The teacher, frozen and in eval mode, and the student to train, both on the device."""
        teacher = context.load(self.teacher) if self.teacher else context.original
        teacher = frozen(teacher, context)
        return teacher, self.learner(model, teacher, context)

    def check(self, model: nn.Module, context: Context) -> None:
        self.pair(model, context)


def frozen(teacher: nn.Module, context: Context) -> nn.Module:
    """`teacher` as it is asked: on the device, in eval mode, its weights without gradients."""
    return teacher.to(context.device).eval().requires_grad_(False)
