"""Self-distillation: a network is its own teacher, or is trained with a virtual one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.logits.figures import log_softened_outputs
from compression.methods.distill.logits.teacher_time import log_total_share
from compression.methods.distill.logits.training import require_classes, train_on_logits
from compression.methods.distill.response import SoftenedLogits, soft_loss
from compression.methods.distill.students.teacher_student import freeze_teacher
from compression.models import storage
from compression.nn import transformer
from compression.nn.layers import COMPRESSED_LAYERS
from compression.params import Place, param
from compression.tasks.task import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.training.context import Context

STYLES = ("born_again", "teacher_free")


@dataclass(frozen=True)
class SelfDistillation(SoftenedLogits):
    """Train the same architecture anew on the logits of the trained one, for one or more generations (born again:
    Furlanello et al. 2018, arXiv:1805.04770), or on a virtual teacher that gives the label nearly all probability
    (teacher-free: Yuan et al. 2020, arXiv:1909.11723, section 5).

    Nothing gets smaller: it is for quality at the same size. In a chain every generation starts from the chain's model.
    """

    style: str = param("born_again", "which logits to train on", choices=STYLES, search=STYLES)
    generations: int = param(
        1, "how often the student becomes the teacher", interval="[1, inf)", when={"style": ("born_again",)}
    )
    # 0.99 as in the authors' code
    sure: float = param(
        0.99,
        "probability of the label in the virtual teacher's output",
        interval="(0, 1)",
        search=(0.9, 0.99),
        when={"style": ("teacher_free",)},
    )
    student: Place = param("", "model name or folder to start from; if empty, the model's own architecture, untrained")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the generations and return the best, or train once with the virtual teacher."""
        context.record.tag("distillation", "self")
        if self.style == "teacher_free":
            training, logits_loss = self.training_for(context.task), self.logits_loss(context.task)
            return train_on_logits(self.initial_student(model, context), [], context, training, logits_loss)
        with log_total_share(context):
            generations = self.train_generations(model, context)
        return self.best_generation(generations, context)

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError where a student must be named, or the virtual teacher has no classes."""
        self.initial_student(model, context)

    def teacher_loss(self, student: Tensor, teachers: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The loss of softened logits, by style from the virtual teacher or the generation before."""
        if self.style == "teacher_free":
            return soft_loss(student, virtual_teacher(targets, student.shape[1], self.sure), self.temperature)
        return soft_loss(student, teachers[0], self.temperature)

    def initial_student(self, model: nn.Module, context: Context) -> nn.Module:
        """The network that a generation starts from; raises UserError where `student` must name it."""
        if self.style == "teacher_free":
            require_classes(context.task, "style=teacher_free")
        if self.student:
            return context.build(self.student)
        if context.model_changed:
            return copy.deepcopy(model)
        if transformer.is_encoder(model):
            raise UserError("A transformer trained anew lacks its pretraining; name where to start from: student=NAME.")
        if any(isinstance(module, COMPRESSED_LAYERS) for module in model.modules()):
            raise UserError("Quantized weights cannot be trained anew; name where to start from: student=NAME.")
        return storage.reinitialized_copy(model)

    def train_generations(self, model: nn.Module, context: Context) -> list[nn.Module]:
        """Train each generation on the logits of the one before, the first on those of `model`; a child run each."""
        # A copy is frozen: in a chain, every generation starts from `model` itself.
        generations, training = [freeze_teacher(copy.deepcopy(model), context)], self.training_for(context.task)
        logits_loss = self.logits_loss(context.task)
        for number in range(1, self.generations + 1):
            student, teachers, name = self.initial_student(model, context), generations[-1:], f"generation-{number}"
            with context.stage(name) as (stage_context, _):
                active = self.active_teachers(teachers)
                student = train_on_logits(student, active, stage_context, training, logits_loss, name=name)
                log_softened_outputs(stage_context, teachers, student, self.temperature)
            generations.append(freeze_teacher(student, context))
        return generations[1:]

    def best_generation(self, generations: list[nn.Module], context: Context) -> nn.Module:
        """The best generation on the validation split, trainable; records the table `generations` of all."""
        task = context.task
        validation = task.validation.to(context.device)
        qualities = [evaluate(student, validation, task)[task.metric] for student in generations]
        rows = [{"generation": i, f"val_{task.metric}": quality} for i, quality in enumerate(qualities, 1)]
        context.record.table("generations", rows)
        best = max(range(len(generations)), key=lambda i: task.gain(qualities[i]))
        return generations[best].requires_grad_(True)


def virtual_teacher(targets: Tensor, classes: int, target_probability: float) -> Tensor:
    """Logits `(batch, classes)` whose softmax is `target_probability` for the target and uniform over the others.

    Yuan et al. 2020, section 5. Softening them by T is the distribution to the power 1 / T, normalised.
    """
    other_probability = (1 - target_probability) / (classes - 1)
    probabilities = torch.full((len(targets), classes), other_probability, device=targets.device)
    # log p are logits of p: their softmax is p again.
    return probabilities.scatter(1, targets.unsqueeze(1), target_probability).log()
