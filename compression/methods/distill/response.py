"""Response distillation: the student learns the teacher's softened outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional as F

from compression.methods.distill.logits.figures import log_softened_outputs
from compression.methods.distill.logits.training import LogitsLoss, label_loss, train_on_logits
from compression.methods.distill.students.teacher_student import Distillation, TeacherStudent
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from compression.tasks.task import Task
    from compression.training.context import Context


@dataclass(frozen=True)
class SoftenedLogits(Distillation):
    """A distillation whose loss is `alpha` times a term of softened logits and `1 - alpha` times that of the labels."""

    temperature: float = param(4.0, "softening of both outputs", interval="[0.01, 1000]", search=(1.0, 16.0), log=True)
    alpha: float = param(0.9, "weight of the teacher's term", interval="[0, 1]", search=(0.0, 1.0))

    def inactive(self) -> frozenset[str]:
        """Also the temperature, where the teacher's term has no weight."""
        return super().inactive() | (set() if self.alpha else {"temperature"})

    def logits_loss(self, task: Task) -> LogitsLoss:
        """The weighted sum of the teacher's term and that of the labels."""
        of_labels = label_loss(task, self.training_for(task))

        def loss(student: Tensor, teachers: Sequence[Tensor], targets: Tensor) -> Tensor:
            if not self.alpha:
                # Nobody was asked then: `teachers` is empty.
                return of_labels(student, targets)
            of_teachers = self.teacher_loss(student, teachers, targets)
            return self.alpha * of_teachers + (1 - self.alpha) * of_labels(student, targets)

        return loss

    def active_teachers(self, teachers: list[nn.Module]) -> list[nn.Module]:
        """The teachers to run: none where their term has no weight."""
        return teachers if self.alpha else []

    def teacher_loss(self, student: Tensor, teachers: Sequence[Tensor], targets: Tensor) -> Tensor:  # noqa: ARG002 - overrides need it
        """The teacher's term, a scalar, of the logits `(batch, classes)` of student and teachers."""
        return soft_loss(student, teachers[0], self.temperature)


@dataclass(frozen=True)
class Response(TeacherStudent, SoftenedLogits):
    """Train the student on the teacher's softened outputs.  Hinton et al. 2015, arXiv:1503.02531, section 2.

    On a regression task the teacher's term is the squared difference of the outputs; there is nothing to soften.
    """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the student on the labels and on the teacher's logits."""
        teacher, student = self.teacher_and_student(model, context)
        training, logits_loss = self.training_for(context.task), self.logits_loss(context.task)
        student = train_on_logits(student, self.active_teachers([teacher]), context, training, logits_loss)
        log_softened_outputs(context, [teacher], student, self.temperature)
        return student


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the outputs softened by T, averaged over the batch.

    Logits `(batch, classes)`. T^2 keeps the size of the gradient as T changes (Hinton et al. 2015, section 2.1). The
    mean is over examples: a mean over examples and classes would make the term `classes` times weaker.
    """
    return soft_losses(student, teacher, temperature).mean()


def soft_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss of each example, `(batch,)`, see `soft_loss`; with a single output, the squared difference."""
    if student.shape[1] == 1:
        return (student - teacher).square().squeeze(1)
    # kl_div(input, target) is KL(target || input): the student comes first. Both as logarithms, where no 0 is taken.
    log_student, log_teacher = (F.log_softmax(x / temperature, dim=1) for x in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2
