"""Deep mutual learning: students teach one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.context import Context
from compression.errors import UserError
from compression.layers import count_parameters
from compression.methods.distill.lesson import label_loss
from compression.methods.distill.pair import Learner, several
from compression.methods.distill.response import soft_loss
from compression.params import param
from compression.tasks.task import Inputs, evaluate, forward
from compression.training import fit


@dataclass(frozen=True)
class Mutual(Learner):
    """Train a cohort of students together, each on the labels and on what the others answer; there is no teacher.
    Zhang et al. 2018, arXiv:1706.00384.

    All take a step at once. The best on the validation split is kept, of those that are no larger than the student.
    """

    cohort: int | None = param(None, "students of one kind that learn together; two if not set", interval="[2, inf)")
    peers: str = param("", "in place of cohort: models that learn along with the student, with // between them")
    temperature: float = param(1.0, "softening of the outputs", interval="(0, inf)", search=(1.0, 8.0), log=True)
    weight: float = param(1.0, "weight of the others' answers", interval="[0, inf)", search=(0.1, 4.0), log=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cohort and self.peers:
            raise UserError(f"cohort={self.cohort} and peers={self.peers} each say who learns along; give one of them.")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        student, *peers = self.members(model, context)
        hard = label_loss(context.task, self)

        def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            answers = [forward(member, inputs) for member in (student, *peers)]
            labels = torch.stack([hard(answer, targets) for answer in answers]).sum()
            return labels + self.weight * mutual_loss(answers, self.temperature)

        student = fit(student, context, self, loss=loss, extra=nn.ModuleList(peers))
        return best([student, *peers], context)

    def members(self, model: nn.Module, context: Context) -> list[nn.Module]:
        """The student and those who learn along; UserError where they could not differ."""
        kin = (self.cohort or 2) if not self.peers else 1
        found = [self.learner(model, context.original, context) for _ in range(kin)]
        found += [context.build(place).to(context.device) for place in several(self.peers)]
        if any(alike(found[0], other) for other in found[1:]):
            raise UserError(
                "Students that start from the same weights have nothing to tell one another; name others with peers=."
            )
        return found


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
    task, sizes = context.task, [count_parameters(member) for member in members]
    validation = task.validation.to(context.device)
    qualities = [evaluate(member.eval(), validation, task)[task.metric] for member in members]
    rows = [
        {"member": i, "params": size, f"val_{task.metric}": quality}
        for i, (size, quality) in enumerate(zip(sizes, qualities, strict=True), 1)
    ]
    context.record.table("cohort", rows)
    allowed = [i for i, size in enumerate(sizes) if size <= sizes[0]]
    return members[max(allowed, key=lambda i: qualities[i])]
