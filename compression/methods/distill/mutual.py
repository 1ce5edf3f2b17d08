"""Deep mutual learning: students teach each other."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.logits.training import label_loss
from compression.methods.distill.response import soft_loss
from compression.methods.distill.students.teacher_student import StudentSelection
from compression.nn.inputs import Inputs, answers
from compression.nn.layers import count_parameters
from compression.params import Place, param
from compression.tasks.task import evaluate
from compression.training.loop import Loss, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.training.context import Context


@dataclass(frozen=True)
class Mutual(StudentSelection):
    """Train a cohort of students together, each on the labels and on the outputs of the others; there is no teacher.
    Zhang et al. 2018, arXiv:1706.00384.

    All are updated in the same step. Each member gets the weights of its own best epoch, and of those no larger than
    the student the best on the validation split is kept.
    """

    cohort: int | None = param(None, "number of students of one kind; two if not set", interval="[2, inf)")
    peers: tuple[Place, ...] = param(
        (), "instead of cohort: models that are trained with the student, with // between them"
    )
    temperature: float = param(1.0, "softening of the outputs", interval="[0.01, 1000]", search=(1.0, 8.0), log=True)
    weight: float = param(1.0, "weight of the others' outputs", interval="[0, inf)", search=(0.1, 4.0), log=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cohort and self.peers:
            raise UserError(
                f"cohort={self.cohort} and peers={'//'.join(self.peers)} each say which models are trained with the "
                "student; give one of them."
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the cohort; the best of its members that are no larger than the student."""
        student, *peers = self.build_members(model, context)
        of_labels = label_loss(context.task, self.training_for(context.task))

        def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            logits, wanted = zip(*(answers(member, inputs, targets) for member in (student, *peers)), strict=True)
            labels = torch.stack([of_labels(of_member, wanted[0]) for of_member in logits]).sum()
            return labels + self.weight * mutual_loss(logits, self.temperature)

        self.train_together(student, Cohort([student, *peers], context), loss)
        return best_member([student, *peers], context)

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError where a member cannot be built, or members start from the same weights."""
        self.build_members(model, context)

    def train_together(self, student: nn.Module, cohort: Cohort, loss: Loss) -> None:
        """Train all members in place; with keep=best each ends with the weights of its own best epoch."""
        context = cohort.context
        training = self.training_for(context.task)
        epochs = training.epochs

        def on_step(step: int, steps: int) -> None:
            # All epochs have the same number of steps, so the division leaves no rest.
            if epochs and step % (steps // epochs) == 0:
                cohort.end_epoch(student)

        # `fit` would keep all members at the student's best epoch; `cohort` keeps each at its own. It is `extra`, so
        # that peers are trained and travel in the checkpoints.
        fit(student, context, replace(training, keep="last"), loss=loss, extra=cohort, on_step=on_step)
        if training.keep == "best":
            cohort.restore(student)

    def build_members(self, model: nn.Module, context: Context) -> list[nn.Module]:
        """The student and its peers; raises UserError where they start from the same weights."""
        of_one_kind = (self.cohort or 2) if not self.peers else 1
        members = [self.build_student(model, context.original, context) for _ in range(of_one_kind)]
        members += [context.build(place).to(context.device) for place in self.peers]
        # Networks drawn anew differ, but copies of one teacher, or the model of a chain taken twice, do not.
        if any(have_equal_weights(members[0], other) for other in members[1:]):
            raise UserError(
                "Students that start from the same weights have nothing to learn from each other; "
                "name others with peers=."
            )
        return members


class Cohort(nn.Module):
    """The peers of a student, and the weights of each member's best epoch so far.

    A module, so that a checkpoint of the training has them.
    """

    gains: Tensor  # the validation metric of each member's best epoch, `(members,)`, as `Task.gain` gives it

    def __init__(self, members: Sequence[nn.Module], context: Context) -> None:
        super().__init__()
        self.context, self.peers = context, nn.ModuleList(members[1:])
        self.best = nn.ModuleList(copy.deepcopy(member).requires_grad_(False) for member in members)
        # In single precision an equal metric, a Python float, could count as a better one.
        self.register_buffer("gains", torch.full((len(members),), -torch.inf, dtype=torch.float64))

    def end_epoch(self, student: nn.Module) -> None:
        """Evaluate all members, record a curve for each, and keep the weights of those better than before."""
        members = [student, *self.peers]
        for i, quality in enumerate(validation_qualities(members, self.context)):
            name = f"val_{self.context.task.metric}_member_{i + 1}"
            # `fit` counts an epoch after its last step, and this is called within that step.
            self.context.record.metrics({name: quality}, self.context.epochs.value + 1)
            if (gain := self.context.task.gain(quality)) > self.gains[i]:
                self.gains[i] = gain
                self.best[i].load_state_dict(members[i].state_dict())

    def restore(self, student: nn.Module) -> None:
        """Load the best weights of each member."""
        for member, best in zip([student, *self.peers], self.best, strict=True):
            member.load_state_dict(best.state_dict())


def validation_qualities(members: Sequence[nn.Module], context: Context) -> list[float]:
    """The validation metric of each member."""
    task, validation = context.task, context.task.validation.to(context.device)
    return [evaluate(member.eval(), validation, task)[task.metric] for member in members]


def mutual_loss(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """The sum over the members of the mean over the others of T^2 KL(other || member); Zhang et al. 2018, section 3.3.

    Logits `(batch, classes)` of each member. Those of the others are constants: no gradient flows through them.
    """
    # One pass of each member serves as student and as teacher; the paper's algorithm updates the members in turn.
    constants = [of_member.detach() for of_member in logits]
    losses = [
        soft_loss(of_member, other, temperature)
        for i, of_member in enumerate(logits)
        for j, other in enumerate(constants)
        if i != j
    ]
    return torch.stack(losses).sum() / (len(logits) - 1)


def have_equal_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal parameters and buffers under the same names."""
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def best_member(members: Sequence[nn.Module], context: Context) -> nn.Module:
    """The best on the validation split of those no larger than the first; records the table `cohort` of all."""
    sizes, qualities = [count_parameters(member) for member in members], validation_qualities(members, context)
    rows = [
        {"member": i, "params": size, f"val_{context.task.metric}": quality}
        for i, (size, quality) in enumerate(zip(sizes, qualities, strict=True), 1)
    ]
    context.record.table("cohort", rows)
    allowed = [i for i, size in enumerate(sizes) if size <= sizes[0]]
    return members[max(allowed, key=lambda i: context.task.gain(qualities[i]))]
