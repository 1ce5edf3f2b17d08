"""Training on a teacher's layers in addition to its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.layers.features import LayerPairs, record_outputs, resolve_layer_pairs
from compression.methods.distill.layers.figures import log_feature_maps
from compression.methods.distill.logits.figures import log_softened_outputs
from compression.methods.distill.logits.teacher_time import TeacherTimer
from compression.methods.distill.response import Response
from compression.nn.inputs import Inputs, answers, attention_mask
from compression.params import param
from compression.training.loop import fit

if TYPE_CHECKING:
    from compression.methods.distill.logits.training import LogitsLoss
    from compression.training.context import Context
    from compression.training.hyperparameters import Training

LayerOutputs = Mapping[str, Tensor]  # layer name -> its output for a batch


class LayerLoss(nn.Module):
    """A loss between pairs of layers. A module, as it may have weights (projections) trained with the student."""

    def __init__(self, pairs: LayerPairs) -> None:
        super().__init__()
        self.pairs = pairs

    def layer_names(self) -> tuple[list[str], list[str]]:
        """The layers whose outputs it needs, of the teacher and of the student."""
        return [teacher for teacher, _ in self.pairs], [student for _, student in self.pairs]

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:
        """A scalar loss of the outputs of the teacher's and the student's layers.

        `mask` is the attention mask, bool `(batch, length)`, and None for images.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LayerDistillation(Response):
    """Base of the methods that compare layers: they add a loss between layers to that of response.

    The teacher runs on every batch: outputs of layers are too large to cache.
    """

    pairs: tuple[tuple[str, str], ...] = param(
        (), "layers to compare, TEACHERS:STUDENTS with / between pairs; if empty, the last of each stage, evenly spaced"
    )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the student on logits and layers."""
        teacher, student = self.teacher_and_student(model, context)
        layer_loss = self.layer_loss(teacher, student, context)
        training, logits_loss = self.training_for(context.task), self.logits_loss(context.task)
        student = train_on_layers(student, teacher, layer_loss, context, training, logits_loss)
        log_softened_outputs(context, [teacher], student, self.temperature)
        log_feature_maps(context, teacher, student, layer_loss.pairs)
        return student

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError also where layers cannot be compared."""
        self.layer_loss(*self.teacher_and_student(model, context), context)

    def layer_loss(self, teacher: nn.Module, student: nn.Module, context: Context) -> LayerLoss:
        """The loss between layers; raises UserError where layers do not exist or cannot be compared."""
        raise NotImplementedError

    def compared_layers(self, teacher: nn.Module, student: nn.Module) -> LayerPairs:
        """The pairs of layers to compare; raises UserError for layers that do not exist."""
        return resolve_layer_pairs(self.pairs, teacher, student)


def train_on_layers(
    student: nn.Module,
    teacher: nn.Module,
    layer_loss: LayerLoss,
    context: Context,
    training: Training,
    logits_loss: LogitsLoss,
    name: str = "",
) -> nn.Module:
    """Train `student` in place with the sum of a loss of logits and a loss between layers; returns it in eval mode.

    The share of the time spent in the teacher is recorded as `teacher_time_share`.
    """
    timer, (teacher_layers, student_layers) = TeacherTimer(context.device), layer_loss.layer_names()

    def loss(runner: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with timer.measure(), torch.no_grad(), record_outputs(teacher, teacher_layers) as teacher_outputs:
            teacher_logits, _ = answers(teacher, inputs, targets)
        # `runner` may be accelerate's wrapper around the student, under which layers have other names.
        with record_outputs(student, student_layers) as student_outputs:
            student_logits, wanted = answers(runner, inputs, targets)
        between_layers: Tensor = layer_loss(teacher_outputs, student_outputs, attention_mask(inputs))
        return logits_loss(student_logits, [teacher_logits], wanted) + between_layers

    trained = fit(student, context, training, loss=loss, extra=layer_loss, name=name)
    timer.log_share(context)
    return trained


def pool_to_smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both feature maps `(batch, channels, height, width)`, average-pooled to the smaller height and width."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)


def require_comparable(pairs: LayerPairs, teacher: LayerOutputs, student: LayerOutputs) -> None:
    """Raise UserError where one layer of a pair outputs feature maps and the other tokens or vectors."""
    for of_teacher, of_student in pairs:
        shapes = list(teacher[of_teacher].shape), list(student[of_student].shape)
        if len(shapes[0]) != len(shapes[1]):
            raise UserError(
                f"The teacher's {of_teacher} and the student's {of_student} cannot be compared: their outputs are "
                f"{shapes[0]} and {shapes[1]}; name layers of one kind in pairs=."
            )
