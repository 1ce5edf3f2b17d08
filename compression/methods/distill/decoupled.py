"""Decoupled distillation: the target class and the other classes are learned as two terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.logits import pictures
from compression.methods.distill.logits.lesson import Judge, label_loss, learn, require_classes
from compression.methods.distill.students.pair import Pair
from compression.params import param
from compression.tasks.task import Task
from compression.training.context import Context


@dataclass(frozen=True)
class Decoupled(Pair):
    """Train the student on how likely the target class is, and on how the other classes compare, with a weight each.
    Zhao et al. 2022, arXiv:2203.08679.

    What response weighs by the teacher's doubt, so that sure answers teach little of the other classes. The labels'
    own loss is added with weight 1. With two classes there is only one other: nothing to compare.
    """

    temperature: float = param(4.0, "softening of both outputs", interval="(0, inf)", search=(1.0, 16.0), log=True)
    alpha: float = param(1.0, "weight of the target class's term", interval="[0, inf)", search=(0.2, 4.0), log=True)
    beta: float = param(8.0, "weight of the other classes' term", interval="[0, inf)", search=(0.5, 16.0), log=True)

    def pair(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        require_classes(context.task, "decoupled")
        return super().pair(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher, student = self.pair(model, context)
        student = learn(student, [teacher], context, self.training_for(context.task), self.judge(context.task))
        pictures.keep_softened(context, [teacher], student, self.temperature)
        return student

    def judge(self, task: Task) -> Judge:
        hard = label_loss(task, self.training_for(task))

        def judge(answer: Tensor, known: Sequence[Tensor], targets: Tensor) -> Tensor:
            target, others = decoupled_losses(answer, known[0], targets, self.temperature)
            return hard(answer, targets) + self.alpha * target + self.beta * others

        return judge


def decoupled_losses(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 TCKD and T^2 NCKD of logits `(batch, classes)`, averaged over the batch; Zhao et al. 2022, eq. 7.

    TCKD is the KL divergence of target class against the rest, NCKD that of the other classes among themselves.
    """
    ours, theirs = (parted(logits / temperature, targets) for logits in (student, teacher))
    target, others = (
        F.kl_div(one, other, reduction="batchmean", log_target=True) for one, other in zip(ours, theirs, strict=True)
    )
    return target * temperature**2, others * temperature**2


def parted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of target and rest `(batch, 2)`, and of the others among themselves `(batch, classes - 1)`."""
    logs = F.log_softmax(logits, dim=1)
    is_target = F.one_hot(targets, logs.shape[1]).bool()
    others = logs[~is_target].view(len(logs), -1)
    rest = others.logsumexp(1)
    return torch.stack([logs[is_target], rest], dim=1), others - rest.unsqueeze(1)
