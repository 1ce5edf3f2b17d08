"""Response distillation: the student learns the teacher's softened outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.context import Context
from compression.methods.base import Method
from compression.methods.distill.pair import Pair
from compression.params import param
from compression.tasks.task import Inputs, forward
from compression.training import Recipe, complete, fit


@dataclass(frozen=True)
class Response(Pair, Recipe, Method):
    """Train the student on the teacher's softened outputs.  Hinton et al. 2015, arXiv:1503.02531, section 2.

    On a regression task the teacher's term is the squared difference of the outputs; there is nothing to soften.
    """

    family: ClassVar[str] = "distill"
    trains: ClassVar[bool] = True

    temperature: float = param(4.0, "softening of both outputs", interval="(0, inf)", search=(1.0, 16.0), log=True)
    alpha: float = param(0.9, "weight of the teacher's term", interval="[0, 1]", search=(0.0, 1.0))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher, student = self.pair(model, context)
        label_smoothing = complete(self, context.task).label_smoothing or 0.0

        def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            with torch.no_grad():
                known = forward(teacher, inputs)
            answer = forward(student, inputs)
            hard = context.task.loss(answer, targets, label_smoothing=label_smoothing)
            return self.alpha * soft_loss(answer, known, self.temperature) + (1 - self.alpha) * hard

        return fit(student, context, self, loss=loss)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the outputs softened by T, averaged over the batch.

    Logits `(batch, classes)`. T^2 keeps the gradient's size as T changes (Hinton et al. 2015, section 2.1). The
    mean is over examples: a mean over examples and classes would make the term `classes` times weaker.
    """
    if student.shape[1] == 1:
        return F.mse_loss(student, teacher)
    log_student, log_teacher = (F.log_softmax(x / temperature, dim=1) for x in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
