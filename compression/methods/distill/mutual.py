"""Deep mutual learning: students teach one another."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.logits.lesson import label_loss
from compression.methods.distill.response import soft_loss
from compression.methods.distill.students.pair import Learner
from compression.nn.inputs import Inputs, forward
from compression.nn.layers import count_parameters
from compression.params import Place, param
from compression.tasks.task import evaluate
from compression.training.context import Context
from compression.training.loop import Loss, fit


@dataclass(frozen=True)
class Mutual(Learner):
    """Train a cohort of students together, each on the labels and on what the others answer; there is no teacher.
    Zhang et al. 2018, arXiv:1706.00384.

    All take a step at once. Each member is taken at its own best epoch, and of those that are no larger than the
    student the best on the validation split is kept.
    """

    cohort: int | None = param(None, "students of one kind that learn together; two if not set", interval="[2, inf)")
    peers: tuple[Place, ...] = param(
        (), "in place of cohort: models that learn along with the student, with // between them"
    )
    temperature: float = param(1.0, "softening of the outputs", interval="(0, inf)", search=(1.0, 8.0), log=True)
    weight: float = param(1.0, "weight of the others' answers", interval="[0, inf)", search=(0.1, 4.0), log=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cohort and self.peers:
            raise UserError(
                f"cohort={self.cohort} and peers={'//'.join(self.peers)} each say who learns along; give one of them."
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        student, *peers = self.members(model, context)
        hard = label_loss(context.task, self.training_for(context.task))

        def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            answers = [forward(member, inputs) for member in (student, *peers)]
            labels = torch.stack([hard(answer, targets) for answer in answers]).sum()
            return labels + self.weight * mutual_loss(answers, self.temperature)

        self.learn_together(student, Cohort([student, *peers], context), loss)
        return best([student, *peers], context)

    def check(self, model: nn.Module, context: Context) -> None:
        self.members(model, context)

    def learn_together(self, student: nn.Module, cohort: Cohort, loss: Loss) -> None:
        """Train all members in place; each ends with the weights of its best epoch, unless the last are to be kept."""
        context = cohort.context
        training = self.training_for(context.task)
        epochs = training.epochs

        def on_step(step: int, steps: int) -> None:
            if epochs and step % (steps // epochs) == 0:
                cohort.look(student)

        fit(student, context, replace(training, keep="last"), loss=loss, extra=cohort, on_step=on_step)
        if training.keep == "best":
            cohort.restore(student)

    def members(self, model: nn.Module, context: Context) -> list[nn.Module]:
        """The student and those who learn along; UserError where they could not differ."""
        kin = (self.cohort or 2) if not self.peers else 1
        found = [self.learner(model, context.original, context) for _ in range(kin)]
        found += [context.build(place).to(context.device) for place in self.peers]
        if any(alike(found[0], other) for other in found[1:]):
            raise UserError(
                "Students that start from the same weights have nothing to tell one another; name others with peers=."
            )
        return found


class Cohort(nn.Module):
    """The peers of a student, and the weights of each member's best epoch so far.

    A module, so that a checkpoint of the training holds them.
    """

    qualities: Tensor  # the validation metric of each member's best epoch

    def __init__(self, members: Sequence[nn.Module], context: Context) -> None:
        super().__init__()
        self.context, self.peers = context, nn.ModuleList(members[1:])
        self.best = nn.ModuleList(copy.deepcopy(member).requires_grad_(False) for member in members)
        self.register_buffer("qualities", torch.full((len(members),), -torch.inf, dtype=torch.float64))

    def look(self, student: nn.Module) -> None:
        """Measure all members at the end of an epoch, each in a curve of its own, and keep those better than before."""
        members = [student, *self.peers]
        for i, quality in enumerate(measured(members, self.context)):
            name = f"val_{self.context.task.metric}_member_{i + 1}"
            self.context.record.metrics({name: quality}, self.context.epochs.value + 1)
            if quality > self.qualities[i]:
                self.qualities[i] = quality
                self.best[i].load_state_dict(members[i].state_dict())

    def restore(self, student: nn.Module) -> None:
        """Put the best weights of each member back into it."""
        for member, kept in zip([student, *self.peers], self.best, strict=True):
            member.load_state_dict(kept.state_dict())


def measured(members: Sequence[nn.Module], context: Context) -> list[float]:
    """The validation metric of each."""
    task, validation = context.task, context.task.validation.to(context.device)
    return [evaluate(member.eval(), validation, task)[task.metric] for member in members]


def mutual_loss(answers: Sequence[Tensor], temperature: float) -> Tensor:
    """The sum over the members of the mean of T^2 KL(other || member), over the others; Zhang et al. 2018, section 3.3.

    Logits `(batch, classes)`. The other's answer is taken as given: it has no gradient from here.
    """
    known = [answer.detach() for answer in answers]
    losses = [
        soft_loss(answer, other, temperature)
        for i, answer in enumerate(answers)
        for j, other in enumerate(known)
        if i != j
    ]
    return torch.stack(losses).sum() / (len(answers) - 1)


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def best(members: Sequence[nn.Module], context: Context) -> nn.Module:
    """The best on the validation split among those no larger than the first; all are in the table `cohort`."""
    sizes, qualities = [count_parameters(member) for member in members], measured(members, context)
    rows = [
        {"member": i, "params": size, f"val_{context.task.metric}": quality}
        for i, (size, quality) in enumerate(zip(sizes, qualities, strict=True), 1)
    ]
    context.record.table("cohort", rows)
    allowed = [i for i, size in enumerate(sizes) if size <= sizes[0]]
    return members[max(allowed, key=lambda i: qualities[i])]
