"""Several teachers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.logits import pictures
from compression.methods.distill.logits.lesson import learn
from compression.methods.distill.response import Softened, soft_losses
from compression.methods.distill.students.pair import Learner, frozen
from compression.params import Place, param
from compression.training.context import Context

WEIGHTINGS = ("mean", "weighted", "confidence")


@dataclass(frozen=True)
class MultiTeacher(Learner, Softened):
    """Train the student on the softened outputs of several teachers.  You et al. 2017 (KDD); weighted by
    each one's confidence: Zhang et al. 2022, arXiv:2201.00007.
    """

    teachers: tuple[Place, ...] = param(
        (), "model names, runs:/…, models:/… or folders with // between them; the model before the first step if empty"
    )
    weighting: str = param(
        "mean",
        "what each counts: the same, a given weight, or for each example the more, the less it errs there",
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
        teachers, student = self.group(model, context)
        if len(teachers) == 1:
            context.record.warn("There is one teacher only, so this is response; name more: teachers=ONE//OTHER.")
        student = learn(
            student, self.heard(teachers), context, self.training_for(context.task), self.judge(context.task)
        )
        pictures.keep_softened(context, teachers, student, self.temperature)
        return student

    def check(self, model: nn.Module, context: Context) -> None:
        self.group(model, context)

    def group(self, model: nn.Module, context: Context) -> tuple[list[nn.Module], nn.Module]:
        """The teachers, frozen, and the student; a copy is one of the first teacher."""
        found = [context.load(place) for place in self.teachers] or [context.original]
        teachers = [frozen(teacher, context) for teacher in found]
        return teachers, self.learner(model, teachers[0], context)

    def soft(self, answer: Tensor, known: Sequence[Tensor], targets: Tensor) -> Tensor:
        losses = torch.stack([soft_losses(answer, one, self.temperature) for one in known])
        return (self.shares(known, targets) * losses).sum(0).mean()

    def shares(self, known: Sequence[Tensor], targets: Tensor) -> Tensor:
        """What each teacher counts, `(teachers, batch)` or `(teachers, 1)`; over the teachers it adds up to 1."""
        if self.weighting == "confidence" and len(known) > 1:
            return confidence(torch.stack([errors(one, targets) for one in known]))
        given = list(self.weights) if self.weights else [1.0] * len(known)
        return (targets.new_tensor(given, dtype=torch.float32) / sum(given)).unsqueeze(1)


def errors(logits: Tensor, targets: Tensor) -> Tensor:
    """How far each answer is from the target, `(batch,)`: cross-entropy, or squared difference in a regression."""
    if logits.shape[1] == 1:
        return (logits.squeeze(1) - targets).square()
    return F.cross_entropy(logits, targets, reduction="none")


def confidence(errors: Tensor) -> Tensor:
    """Weights of two or more teachers for each example from their errors, both `(teachers, batch)`.

    (1 - softmax of the errors over the teachers) / (teachers - 1); Zhang et al. 2022, section 2.
    """
    return (1 - errors.softmax(0)) / (len(errors) - 1)
