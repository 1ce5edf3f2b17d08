"""Self-distillation: a network is its own teacher, or makes do without one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.logits import pictures
from compression.methods.distill.logits.lesson import learn, require_classes
from compression.methods.distill.logits.teacher_time import one_share
from compression.methods.distill.response import Softened, soft_loss
from compression.methods.distill.students.pair import frozen
from compression.models import storage
from compression.nn import transformer
from compression.nn.layers import COMPRESSED
from compression.params import param
from compression.tasks.task import evaluate
from compression.training.context import Context

STYLES = ("born_again", "teacher_free")


@dataclass(frozen=True)
class SelfDistillation(Softened):
    """Train the same architecture anew on what the trained one knows, once or for several generations (born again:
    Furlanello et al. 2018, arXiv:1805.04770), or on a made-up teacher that is nearly sure of the label (teacher-free:
    Yuan et al. 2020, arXiv:1909.11723, section 5).

    Nothing gets smaller: it is for quality at the same size. In a chain every generation starts from the chain's model.
    """

    style: str = param("born_again", "where the answers come from", choices=STYLES, search=STYLES)
    generations: int = param(
        1, "how often the student becomes the teacher", interval="[1, inf)", when={"style": ("born_again",)}
    )
    sure: float = param(
        0.99,
        "probability of the label in the virtual teacher's output",
        interval="(0, 1)",
        search=(0.9, 0.99),
        when={"style": ("teacher_free",)},
    )
    student: str = param("", "model name or folder to start from; the model's own architecture, untrained, if empty")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        context.record.tag("distillation", "self")
        if self.style == "teacher_free":
            training = self.training_for(context.task)
            return learn(self.start(model, context), [], context, training, self.judge(context.task))
        with one_share(context):
            generations = self.born(model, context)
        return self.best(generations, context)

    def check(self, model: nn.Module, context: Context) -> None:
        self.start(model, context)

    def soft(self, answer: Tensor, known: Sequence[Tensor], targets: Tensor) -> Tensor:
        made_up = self.style == "teacher_free"
        right = virtual_teacher(targets, answer.shape[1], self.sure) if made_up else known[0]
        return soft_loss(answer, right, self.temperature)

    def start(self, model: nn.Module, context: Context) -> nn.Module:
        """The network that a generation begins with; UserError where a pretrained one must be named."""
        if self.style == "teacher_free":
            require_classes(context.task, "style=teacher_free")
        if self.student:
            return context.build(self.student)
        if context.model_changed:
            return copy.deepcopy(model)
        if transformer.is_transformer(model):
            raise UserError("A transformer trained anew lacks its pretraining; name where to start from: student=NAME.")
        if any(isinstance(module, COMPRESSED) for module in model.modules()):
            raise UserError("Quantized weights cannot be trained anew; name where to start from: student=NAME.")
        return storage.untrained(model)

    def born(self, model: nn.Module, context: Context) -> list[nn.Module]:
        """The generations, each taught by the one before it, the first by `model`; a child run each."""
        found, training = [frozen(copy.deepcopy(model), context)], self.training_for(context.task)
        for number in range(1, self.generations + 1):
            student, teachers, name = self.start(model, context), found[-1:], f"generation-{number}"
            with context.stage(name) as (stage, _):
                student = learn(student, self.heard(teachers), stage, training, self.judge(context.task), name=name)
                pictures.keep_softened(stage, teachers, student, self.temperature)
            found.append(frozen(student, context))
        return found[1:]

    def best(self, generations: list[nn.Module], context: Context) -> nn.Module:
        """The generation that is best on the validation split; all are in the table `generations`."""
        task = context.task
        validation = task.validation.to(context.device)
        qualities = [evaluate(student, validation, task)[task.metric] for student in generations]
        rows = [{"generation": i, f"val_{task.metric}": quality} for i, quality in enumerate(qualities, 1)]
        context.record.table("generations", rows)
        return generations[qualities.index(max(qualities))].requires_grad_(True)


def virtual_teacher(targets: Tensor, classes: int, sure: float) -> Tensor:
    """Logits `(batch, classes)` whose softmax is `sure` for the target and even for the others.

    Yuan et al. 2020, section 5. Softening them by T is the distribution to the power 1 / T, normalised.
    """
    probabilities = torch.full((len(targets), classes), (1 - sure) / (classes - 1), device=targets.device)
    return probabilities.scatter(1, targets.unsqueeze(1), sure).log()
