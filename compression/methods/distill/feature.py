"""Hints: layers of the student give what layers of the teacher give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.layers.features import Pairs, sample
from compression.methods.distill.layers.layered import Comparison, Layered, Outputs, require_same_kind, smaller
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class Feature(Layered):
    """Train the student on what layers of the teacher give, beside its answers.  FitNets: Romero et al. 2015,
    arXiv:1412.6550, eq. 3.

    A regressor, a 1x1 convolution or a linear layer that learns along, stands between layers of different width.
    Images of different size are averaged to the smaller.
    """

    weight: float = param(1.0, "weight of the hints", interval="[0, inf)", search=(0.1, 100.0), log=True)

    def comparison(self, teacher: nn.Module, student: nn.Module, context: Context) -> Comparison:
        pairs = self.layers_to_compare(teacher, student)
        known = sample(teacher, [name for name, _ in pairs], context)
        seen = sample(student, [name for _, name in pairs], context)
        require_same_kind(pairs, known, seen)
        return Hints(pairs, known, seen, self.weight)


class Hints(Comparison):
    """`weight` times the mean of the pairs' squared differences; `known` and `seen` show the layers' shapes."""

    def __init__(self, pairs: Pairs, known: Outputs, seen: Outputs, weight: float) -> None:
        super().__init__(pairs)
        self.weight = weight
        self.regressors = nn.ModuleList(regressor(seen[student], known[teacher]) for teacher, student in pairs)

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        losses = [
            hint_loss(regress(seen[student]), known[teacher], tokens)
            for regress, (teacher, student) in zip(self.regressors, self.pairs, strict=True)
        ]
        return self.weight * torch.stack(losses).mean()


def regressor(student: Tensor, teacher: Tensor) -> nn.Module:
    """What brings outputs of one width to another; widths are those of images' channels, or the last dimension."""
    at = 1 if student.ndim == 4 else -1
    ours, theirs = student.shape[at], teacher.shape[at]
    if ours == theirs:
        return nn.Identity()
    return nn.Conv2d(ours, theirs, 1) if at == 1 else nn.Linear(ours, theirs)


def hint_loss(student: Tensor, teacher: Tensor, tokens: Tensor | None = None) -> Tensor:
    """The mean squared difference of outputs of one width, over all their elements but those of padding."""
    if student.ndim == 4:
        student, teacher = smaller(student, teacher)
    elif tokens is not None and student.ndim == 3:
        student, teacher = student[tokens], teacher[tokens]
    return F.mse_loss(student, teacher)
