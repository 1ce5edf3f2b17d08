"""Distillation block by block: the stages of the student replace those of the teacher in turn, from the inputs on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.feature import HintLoss
from compression.methods.distill.layers.features import LayerPairs, record_outputs, resolve_layer_pairs, sample_outputs
from compression.methods.distill.layers.layer_distillation import require_comparable, train_on_layers
from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, forward, map_inputs
from compression.nn.layers import count_parameters

if TYPE_CHECKING:
    from compression.methods.distill.students.progression import Progression
    from compression.training.context import Context
    from compression.training.hyperparameters import Training


def stage_pairs(teacher: nn.Module, student: nn.Module, context: Context) -> LayerPairs:
    """The stages of the teacher and those of the student that replace them; raises UserError where they do not fit."""
    try:
        pairs = resolve_layer_pairs((), teacher, student)
        of_teacher, of_student = zip(*pairs, strict=True)
        require_comparable(
            pairs, sample_outputs(teacher, of_teacher, context), sample_outputs(student, of_student, context)
        )
    except UserError as error:
        raise UserError(
            "style=blocks replaces the teacher's stages by the student's, and those of a "
            f"{type(student).__name__} do not fit a {type(teacher).__name__}; take another student=, or "
            "style=assistants."
        ) from error
    return pairs


def train_blocks(
    student: nn.Module, teacher: nn.Module, pairs: LayerPairs, training: Training, progression: Progression
) -> None:
    """Train the student, in place, up to each of its stages in turn to match the output of the teacher's stage.

    Each stage is a child run, and adds to the progression the teacher with its first stages replaced.
    """
    context = progression.context
    for number, pair in enumerate(pairs, 1):
        name, (of_teacher, of_student) = f"block-{number}", pair
        outputs = sample_outputs(teacher, [of_teacher], context), sample_outputs(student, [of_student], context)
        hint_loss = HintLoss([pair], *outputs, weight=1.0)
        with context.stage(name) as (stage_context, own_logger):
            train_on_layers(student, teacher, hint_loss, stage_context, training, no_logits_loss, name=name)
            hybrid = Hybrid(student, teacher, hint_loss).eval()
            progression.add(name, hybrid, hybrid.count_parameters(context))
            own_logger.metrics({"params": progression.points[-1]["params"]})


def no_logits_loss(student: Tensor, teachers: object, targets: Tensor) -> Tensor:  # noqa: ARG001 - a `LogitsLoss`
    """0 whatever the logits: only the layers up to the trained one are to learn."""
    return student.new_zeros(())


class Hybrid(nn.Module):
    """The teacher with everything up to one layer replaced by the student and its regressor."""

    def __init__(self, student: nn.Module, teacher: nn.Module, hint_loss: HintLoss) -> None:
        super().__init__()
        [(self.teacher_layer, self.student_layer)] = hint_loss.pairs
        self.student, self.teacher, self.regressor = student, teacher, hint_loss.regressors[0]

    def forward(self, *images: Tensor, **tokens: Tensor) -> Tensor:
        """The logits `(batch, outputs)`: the teacher's, its layer's output replaced by the student's."""
        inputs: Inputs = tokens or images[0]
        with record_outputs(self.student, [self.student_layer]) as outputs:
            forward(self.student, inputs)
        replacement = self.regressor(outputs[self.student_layer])

        def replace(call: Call) -> Tensor | tuple[Tensor, ...]:
            return match_output(replacement, call.output)

        with on_forward({self.teacher_layer: self.teacher.get_submodule(self.teacher_layer)}, replace):
            return forward(self.teacher, inputs)

    def count_parameters(self, context: Context) -> int:
        """Parameters of the student up to the layer, of the regressor, and of the teacher after its layer."""
        replaced = count_parameters_up_to(self.teacher, self.teacher_layer, context)
        kept = count_parameters(self.teacher) - replaced
        own = count_parameters_up_to(self.student, self.student_layer, context)
        return own + count_parameters(self.regressor) + kept


def match_output(replacement: Tensor, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """`replacement` in the form of a layer's `output`: feature maps pooled to its size, in a tuple if it is one."""
    if isinstance(output, tuple):
        return replacement, *output[1:]
    if replacement.ndim == 4:
        # to a larger size, adaptive pooling repeats pixels
        return F.adaptive_avg_pool2d(replacement, (output.shape[2], output.shape[3]))
    return replacement


def count_parameters_up_to(model: nn.Module, layer: str, context: Context) -> int:
    """The number of parameters that the output of `layer` depends on: those with a gradient."""
    copied = copy.deepcopy(model).requires_grad_(True).eval()
    inputs = map_inputs(lambda tensor: tensor.to(context.device), context.task.example(2))
    with record_outputs(copied, [layer]) as outputs:
        forward(copied, inputs)
    weights = list(copied.parameters())
    # By gradients, since the order of modules need not be that of the calls; parameters that are not used have None.
    gradients = torch.autograd.grad(outputs[layer].sum(), weights, allow_unused=True)
    return sum(weight.numel() for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None)
