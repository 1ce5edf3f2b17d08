"""Decoupled distillation: the target class and the other classes are two terms of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.logits.figures import log_softened_outputs
from compression.methods.distill.logits.training import LogitsLoss, label_loss, require_classes, train_on_logits
from compression.methods.distill.students.teacher_student import TeacherStudent
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tasks.task import Task
    from compression.training.context import Context


@dataclass(frozen=True)
class Decoupled(TeacherStudent):
    """Train the student on the probability of the target class and on the distribution over the other classes.
    Zhao et al. 2022, arXiv:2203.08679.

    Each term has its own weight. In response the second one is weighted by 1 - p of the teacher's target class, so that
    confident outputs teach little about the other classes. The labels' own loss is added with weight 1. With two
    classes there is a single other class, and the second term is 0.
    """

    # T = 4, alpha = 1, beta = 8 are the defaults of the authors' code.
    temperature: float = param(4.0, "softening of both outputs", interval="[0.01, 1000]", search=(1.0, 16.0), log=True)
    alpha: float = param(1.0, "weight of the target class's term", interval="[0, inf)", search=(0.2, 4.0), log=True)
    beta: float = param(8.0, "weight of the other classes' term", interval="[0, inf)", search=(0.5, 16.0), log=True)

    def teacher_and_student(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        """The frozen teacher and the student to train; raises UserError also for a regression."""
        require_classes(context.task, "decoupled")
        return super().teacher_and_student(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the student on the labels and on both terms of the teacher's logits."""
        teacher, student = self.teacher_and_student(model, context)
        training, logits_loss = self.training_for(context.task), self.logits_loss(context.task)
        student = train_on_logits(student, [teacher], context, training, logits_loss)
        log_softened_outputs(context, [teacher], student, self.temperature)
        return student

    def logits_loss(self, task: Task) -> LogitsLoss:
        """The loss of the labels and the weighted terms of the teacher's logits."""
        of_labels = label_loss(task, self.training_for(task))

        def loss(student: Tensor, teachers: Sequence[Tensor], targets: Tensor) -> Tensor:
            target, others = decoupled_losses(student, teachers[0], targets, self.temperature)
            return of_labels(student, targets) + self.alpha * target + self.beta * others

        return loss


def decoupled_losses(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 TCKD and T^2 NCKD of logits `(batch, classes)`, averaged over the batch; Zhao et al. 2022, eq. 7.

    TCKD is the KL divergence of target class against all others, NCKD that of the other classes among themselves.
    """
    of_student, of_teacher = (decoupled_log_probabilities(x / temperature, targets) for x in (student, teacher))
    # "mean" would divide by the number of classes, too, which differs between the two terms.
    target, others = (
        F.kl_div(s, t, reduction="batchmean", log_target=True) for s, t in zip(of_student, of_teacher, strict=True)
    )
    return target * temperature**2, others * temperature**2


def decoupled_log_probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of target and rest `(batch, 2)`, and of the others among themselves `(batch, classes - 1)`."""
    log_probabilities = F.log_softmax(logits, dim=1)
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    # A mask drops one entry of every row, so what is left is a matrix again: (batch, classes - 1).
    others = log_probabilities[~is_target].view(len(logits), -1)
    # log(1 - p) as a sum over the others: where p rounds to 1, the difference would be the logarithm of 0.
    rest = others.logsumexp(1)
    return torch.stack([log_probabilities[is_target], rest], dim=1), others - rest.unsqueeze(1)
