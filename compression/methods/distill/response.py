"""Response distillation: the student learns the teacher's softened outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.logits import pictures
from compression.methods.distill.logits.lesson import Judge, label_loss, learn
from compression.methods.distill.students.pair import Distillation, Pair
from compression.params import param
from compression.tasks.task import Task
from compression.training.context import Context


@dataclass(frozen=True)
class Softened(Distillation):
    """How much a teacher's outputs are softened, and how much they count."""

    temperature: float = param(4.0, "softening of both outputs", interval="(0, inf)", search=(1.0, 16.0), log=True)
    alpha: float = param(0.9, "weight of the teacher's term", interval="[0, 1]", search=(0.0, 1.0))

    def inactive(self) -> frozenset[str]:
        return super().inactive() | (set() if self.alpha else {"temperature"})

    def judge(self, task: Task) -> Judge:
        """alpha times the teacher's term and 1 - alpha times that of the labels."""
        hard = label_loss(task, self.training_for(task))

        def judge(answer: Tensor, known: Sequence[Tensor], targets: Tensor) -> Tensor:
            if not self.alpha:
                return hard(answer, targets)
            return self.alpha * self.soft(answer, known, targets) + (1 - self.alpha) * hard(answer, targets)

        return judge

    def heard(self, teachers: list[nn.Module]) -> list[nn.Module]:
        """The teachers to ask: none where their answers do not count."""
        return teachers if self.alpha else []

    def soft(self, answer: Tensor, known: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The teacher's term."""
        return soft_loss(answer, known[0], self.temperature)


@dataclass(frozen=True)
class Response(Pair, Softened):
    """Train the student on the teacher's softened outputs.  Hinton et al. 2015, arXiv:1503.02531, section 2.

    On a regression task the teacher's term is the squared difference of the outputs; there is nothing to soften.
    """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher, student = self.pair(model, context)
        student = learn(
            student, self.heard([teacher]), context, self.training_for(context.task), self.judge(context.task)
        )
        pictures.keep_softened(context, [teacher], student, self.temperature)
        return student


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the outputs softened by T, averaged over the batch.

    Logits `(batch, classes)`. T^2 keeps the gradient's size as T changes (Hinton et al. 2015, section 2.1). The
    mean is over examples: a mean over examples and classes would make the term `classes` times weaker.
    """
    return soft_losses(student, teacher, temperature).mean()


def soft_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same for each example, `(batch,)`."""
    if student.shape[1] == 1:
        return (student - teacher).square().squeeze(1)
    log_student, log_teacher = (F.log_softmax(x / temperature, dim=1) for x in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2
