"""Hints: layers of the student learn to output what layers of the teacher output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.layers.features import LayerPairs, sample_outputs
from compression.methods.distill.layers.layer_distillation import (
    LayerDistillation,
    LayerLoss,
    LayerOutputs,
    pool_to_smaller,
    require_comparable,
)
from compression.params import param

if TYPE_CHECKING:
    from compression.training.context import Context


@dataclass(frozen=True)
class Feature(LayerDistillation):
    """Train the student on outputs of the teacher's layers in addition to its logits.  FitNets: Romero et al. 2015,
    arXiv:1412.6550, eq. 3.

    Between layers of different width there is a regressor, a 1x1 convolution or a linear layer trained with the
    student. Feature maps of different size are average-pooled to the smaller.
    """

    weight: float = param(1.0, "weight of the hints", interval="[0, inf)", search=(0.1, 100.0), log=True)

    def layer_loss(self, teacher: nn.Module, student: nn.Module, context: Context) -> HintLoss:
        """The weighted mean squared difference of the layers' outputs."""
        pairs = self.compared_layers(teacher, student)
        of_teacher = sample_outputs(teacher, [layer for layer, _ in pairs], context)
        of_student = sample_outputs(student, [layer for _, layer in pairs], context)
        require_comparable(pairs, of_teacher, of_student)
        return HintLoss(pairs, of_teacher, of_student, self.weight)


class HintLoss(LayerLoss):
    """`weight` times the mean of `hint_loss` over the pairs.

    `teacher` and `student` are sample outputs of the layers, which give the widths for the regressors.
    """

    def __init__(self, pairs: LayerPairs, teacher: LayerOutputs, student: LayerOutputs, weight: float) -> None:
        super().__init__(pairs)
        self.weight = weight
        self.regressors = nn.ModuleList(regressor(student[s], teacher[t]) for t, s in pairs)

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:
        """The weighted mean over the pairs."""
        losses = [
            hint_loss(regress(student[of_student]), teacher[of_teacher], mask)
            for regress, (of_teacher, of_student) in zip(self.regressors, self.pairs, strict=True)
        ]
        return self.weight * torch.stack(losses).mean()


def regressor(student: Tensor, teacher: Tensor) -> nn.Module:
    """The layer that maps outputs of the student's width (channels, or the last dimension) to the teacher's."""
    dimension = 1 if student.ndim == 4 else -1
    widths = student.shape[dimension], teacher.shape[dimension]
    if widths[0] == widths[1]:
        return nn.Identity()
    return nn.Conv2d(*widths, 1) if dimension == 1 else nn.Linear(*widths)


def hint_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference of outputs of one width, padding (False in `mask` `(batch, length)`) left out.

    Feature maps `(batch, channels, height, width)`, tokens `(batch, length, width)` or vectors `(batch, width)`.
    """
    if student.ndim == 4:
        student, teacher = pool_to_smaller(student, teacher)
    elif mask is not None and student.ndim == 3:
        student, teacher = student[mask], teacher[mask]
    return F.mse_loss(student, teacher)
