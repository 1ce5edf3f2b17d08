"""L0 pruning of transformers: gates on their parts are learned together with the weights, to a given sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.distill.response import soft_loss
from compression.methods.prune.masks import schedule
from compression.methods.prune.masks.clock import Clock
from compression.methods.prune.structure import cofi, cutting
from compression.nn import transformer
from compression.nn.inputs import Inputs, forward
from compression.params import group, param
from compression.reporting.figures.prune import sparsity_curve
from compression.training.context import Context
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import decay_groups, fit

TEACHERS = 4  # layers of the original that the student's are held against: every third of twelve, as in CoFi


@dataclass(frozen=True)
class L0(Method):
    """Learn which layers, heads, neurons and hidden dimensions to keep, and cut the others.  CoFi: Xia et al. 2022,
    arXiv:2204.00408.

    Gates are hard concrete (Louizos et al. 2018, arXiv:1712.01312). Two multipliers drive their expected number to
    the sparsity (Wang et al. 2020, arXiv:1910.04732), which counts the weights of the attentions and feed-forward
    parts. Layers of the original teach those of the model that are most like them.
    """

    family: ClassVar[str] = "prune"
    requires: ClassVar[str] = "text"

    sparsity: float = param(0.5, "share of the encoder's weights to cut", interval="[0, 1)", search=(0.3, 0.95))
    sparsity_schedule: str = param("linear", "how the target rises meanwhile", choices=schedule.RISING)
    ramp_start: float = param(0.0, "share of the training before the target rises from 0 (warm-up)", interval="[0, 1)")
    ramp_end: float = param(0.4, "share of the training at which the target is the whole sparsity", interval="(0, 1]")
    mask_learning_rate: float = param(
        0.1, "peak learning rate of the gates", interval="(0, inf)", search=(1e-2, 1.0), log=True
    )
    multiplier_learning_rate: float = param(
        0.1, "peak learning rate of the two multipliers", interval="(0, inf)", search=(1e-2, 1.0), log=True
    )
    distill_alpha: float = param(0.5, "weight of the original model in the loss", interval="[0, 1]")
    layer_share: float = param(0.5, "share of it that its layers have, the rest is its answers'", interval="[0, 1]")
    temperature: float = param(2.0, "softening of both outputs", interval="(0, inf)")
    # The last weights are kept: the best epoch may lie before the target sparsity.
    training: Training = group(Training, fixed={"keep": "last"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp_start >= self.ramp_end:
            raise UserError(f"ramp_start={self.ramp_start} is not before ramp_end={self.ramp_end}; it must be less.")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        transformer.architecture(model)  # refuses what has no heads or layers
        require_training(self.training, context.task.training, "Gates are learned")
        before = cutting.sizes(model)
        course = Course(self.resolved(context.task), context, model, Learned(model, context.original))
        cofi.attach(model.to(context.device), course.learned.masks)
        fit(
            model,
            context,
            self.training,
            loss=course.loss,
            on_step=course.on_step,
            extra=course.learned,
            parameter_groups=course.parameter_groups,
        )
        model = cofi.detach(model, course.learned.masks, course.settled())
        cutting.show(before, model, context.record)
        context.record.figure("sparsity-schedule", sparsity_curve(course.points))
        return model


class Learned(nn.Module):
    """All that is learned besides the model's weights, and how far the training has come."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.masks = cofi.Masks(model)
        self.multipliers = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(2)])
        self.project = nn.Linear(transformer.hidden_size(model), transformer.hidden_size(teacher), bias=False)
        nn.init.eye_(self.project.weight)
        self.clock = Clock()

    def constraint(self, target: float) -> Tensor:
        """lambda_1 (s - t) + lambda_2 (s - t)^2 for the expected sparsity s (Xia et al. 2022, section 3.1)."""
        gap = self.masks.expected_sparsity() - target
        return self.multipliers[0] * gap + self.multipliers[1] * gap.square()


@dataclass
class Course:
    """A training with gates: its loss, its parameters, its target at each step."""

    method: L0
    context: Context
    model: nn.Module
    learned: Learned
    points: list[tuple[float, float, float]] = field(default_factory=list)  # step, target, reached

    @property
    def target(self) -> float:
        """The sparsity that the multipliers drive at now."""
        m, done = self.method, self.learned.clock.done
        return schedule.target(m.sparsity_schedule, done, 0.0, m.sparsity, m.ramp_start, 1 - m.ramp_end)

    def on_step(self, step: int, steps: int) -> None:
        self.learned.clock.done = step / steps
        if step % math.ceil(steps / 100) == 0 or step == steps:
            self.points.append((step, self.target, self.learned.masks.sparsity(self.decided())))

    @torch.no_grad()
    def decided(self) -> list[Tensor]:
        return [row.decide() for row in self.learned.masks.every()]

    def loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """The task's loss, the original's answers and layers, and the constraint, under gates drawn anew."""
        self.learned.masks.draw()
        m, task = self.method, self.context.task
        with transformer.record_hidden_states(self.model) as seen:
            answer = forward(model, inputs)
        value = (1 - m.distill_alpha) * task.loss(answer, targets, label_smoothing=m.training.label_smoothing or 0.0)
        if m.distill_alpha:
            value = value + m.distill_alpha * self.taught(answer, [state for _, state in seen], inputs)
        return value + self.learned.constraint(self.target)

    def taught(self, answer: Tensor, states: list[Tensor], inputs: Inputs) -> Tensor:
        """What the original model says of an answer and of the hidden states it came by."""
        m, teacher = self.method, self.context.original.to(self.context.device).eval()
        with torch.no_grad(), transformer.record_hidden_states(teacher) as known:
            right = forward(teacher, inputs)
        value = (1 - m.layer_share) * soft_loss(answer, right, m.temperature)
        if not m.layer_share:
            return value
        assert isinstance(inputs, dict)
        projected = [self.learned.project(s) for s in states]
        alive = self.learned.masks.ffn.drawn > 0
        return value + m.layer_share * layer_loss(
            projected, [state for _, state in known], alive, inputs["attention_mask"]
        )

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The weights as always; the gates at their own rate; the multipliers uphill, as they are to be maximized."""
        m, gates = self.method, [row.log_alpha for row in self.learned.masks.every()]
        own = {id(p) for p in [*gates, *self.learned.multipliers]}
        groups = [g | {"params": [p for p in g["params"] if id(p) not in own]} for g in decay_groups(model)]
        rising = {"lr": m.multiplier_learning_rate, "maximize": True, "weight_decay": 0.0}
        return [
            *groups,
            {"params": gates, "lr": m.mask_learning_rate, "weight_decay": 0.0},
            {"params": list(self.learned.multipliers), **rising},
        ]

    def settled(self) -> list[Tensor]:
        """The gates as they are cut: the target is met; said where the multipliers had not led there."""
        expected, wanted = self.learned.masks.expected_sparsity().item(), self.method.sparsity
        if abs(expected - wanted) > 0.02:
            self.context.record.warn(
                f"The multipliers led to {expected:.1%} for a target of {wanted:.0%}, which was then met at once: "
                "train for more steps (some hundreds are needed), or raise mask_learning_rate."
            )
        return self.learned.masks.settle(wanted)


def layer_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], alive: Tensor, there: Tensor) -> Tensor:
    """The squared difference of layers' states `(batch, length, hidden)`, over tokens that are no padding.

    Some of the teacher's layers, evenly spread, are each held against the student's layer that is closest to it,
    among those `alive` (all, if none is). Xia et al. 2022, eq. 4.
    """
    count = min(TEACHERS, len(teacher))
    chosen = [teacher[round((i + 1) * len(teacher) / count) - 1] for i in range(count)]
    living = [s for s, lives in zip(student, alive.tolist(), strict=True) if lives] or list(student)
    tokens = there.bool()
    distances = torch.stack([torch.stack([F.mse_loss(s[tokens], t[tokens]) for s in living]) for t in chosen])
    return distances.min(1).values.mean()
