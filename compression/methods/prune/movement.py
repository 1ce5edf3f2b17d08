"""Movement pruning: weights that move towards zero in a training go, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.distill.response import soft_loss
from compression.methods.prune.masks import amounts, blocks, schedule
from compression.methods.prune.masks.clock import Clock
from compression.nn import layers
from compression.nn.inputs import Inputs, forward
from compression.params import group, param
from compression.reporting.figures.prune import sparsity_curve
from compression.training.context import Context
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import Loss, decay_groups, fit

START = math.log(0.9 / 0.1)  # scores of the sigmoid variant begin at 0.9, as those of Sanh et al. do

TOPK, SIGMOID = {"variant": ("topk",)}, {"variant": ("sigmoid",)}


@dataclass(frozen=True)
class Learned(Method):
    """What the pruners with learned scores share: the training in which weights and scores are learned together."""

    family: ClassVar[str] = "prune"

    sparsity: float = param(0.5, "share of the weights to prune", interval="[0, 1)", search=(0.3, 0.95))
    variant: str = param(
        "topk",
        "topk keeps the share of the highest scores (hard); sigmoid those above a threshold, which a penalty pushes "
        "them below (soft), and the highest once the cool-down begins",
        choices=("topk", "sigmoid"),
    )
    scope: str = param(
        "local", "rank within each layer, or all layers together", choices=("local", "global"), when=TOPK
    )
    score_learning_rate: float = param(
        0.01,
        "peak learning rate of the scores (a ranking by topk does not depend on it)",
        interval="(0, inf)",
        search=(1e-3, 1.0),
        log=True,
        when=SIGMOID,
    )
    sparsity_schedule: str = param("agp", "how it rises from warm-up to cool-down", choices=schedule.RISING)
    ramp_start: float = param(0.1, "share of the training before pruning begins (warm-up)", interval="[0, 1)")
    ramp_end: float = param(0.7, "share of the training after which nothing more goes (cool-down)", interval="(0, 1]")
    threshold: float = param(0.1, "what a score's sigmoid must exceed in the end", interval="(0, 1)", when=SIGMOID)
    regularization: float = param(
        100.0,
        "weight of the scores' mean sigmoid in the loss",
        interval="[0, inf)",
        search=(1.0, 1000.0),
        log=True,
        when=SIGMOID,
    )
    distill_alpha: float = param(0.0, "weight of the original model's answers in the loss", interval="[0, 1]")
    temperature: float = param(2.0, "softening of both outputs, if distill_alpha > 0", interval="(0, inf)")
    # The last weights are kept: the best epoch may lie before the target sparsity.
    training: Training = group(Training, fixed={"keep": "last"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp_start >= self.ramp_end:
            raise UserError(f"ramp_start={self.ramp_start} is not before ramp_end={self.ramp_end}; it must be less.")

    def inactive(self) -> frozenset[str]:
        return super().inactive() | (set() if self.distill_alpha else {"temperature"})

    def groups(self, model: nn.Module) -> list[list[blocks.Part]]:
        """The layers to score, cut into blocks; those whose blocks live and die together in one list."""
        raise NotImplementedError

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        require_training(self.training, context.task.training, "Scores are learned")
        model = model.to(context.device)
        before = amounts.sparsity(model)
        start = START if self.variant == "sigmoid" else 0.0
        course = Course(self, blocks.attach(model, self.groups(model), start), context)
        fit(
            model,
            context,
            self.training,
            loss=course.loss(),
            on_step=course.on_step,
            extra=course.clock,
            parameter_groups=course.parameter_groups,
        )
        course.report()
        amounts.report(before, blocks.detach(model), self.sparsity, context.record)
        return model


@dataclass(frozen=True)
class Movement(Learned):
    """Prune single weights by scores learned with them, which rise where a weight moves away from zero.

    Sanh et al. 2020, arXiv:2005.07683: a score's gradient is dL/dW' * W, as though its mask were the score itself
    (eq. 3 and 5); sparsity rises, by the cube as there, between warm-up and cool-down (section 4).
    """

    def groups(self, model: nn.Module) -> list[list[blocks.Part]]:
        return [[(name, blocks.Blocks.of(layer, 1, 1))] for name, layer in layers.prunable_layers(model).items()]


@dataclass
class Course:
    """A training with scores: what is kept at each step, and what the loss adds for it."""

    method: Learned
    scored: Sequence[blocks.Scores]
    context: Context
    clock: Clock = field(default_factory=Clock)
    points: list[tuple[float, float, float]] = field(default_factory=list)  # step, target, reached

    @property
    def risen(self) -> float:
        """How much of the way to the target is to be done by now."""
        m = self.method
        return schedule.target(m.sparsity_schedule, self.clock.done, 0.0, 1.0, m.ramp_start, 1 - m.ramp_end)

    @property
    def soft(self) -> bool:
        """Whether a threshold decides now, and not yet the share."""
        return self.method.variant == "sigmoid" and self.clock.done < self.method.ramp_end

    def on_step(self, step: int, steps: int) -> None:
        was_soft, self.clock.done = self.soft, step / steps
        if self.soft:
            exceed(self.scored, self.method.threshold * self.risen)
        else:
            if was_soft:
                self.look_at_gap()
            self.choose(self.method.sparsity * self.risen)
        if step % math.ceil(steps / 100) == 0 or step == steps:
            self.points.append((step, self.method.sparsity * self.risen, blocks.pruned_share(self.scored)))

    def choose(self, sparsity: float) -> None:
        if self.method.variant == "topk" and self.method.scope == "local":
            blocks.choose_locally(self.scored, sparsity)
        else:  # a sigmoid's threshold is the same for a block of any size
            blocks.choose_globally(self.scored, sparsity, per_weight=self.method.variant == "topk")

    def look_at_gap(self) -> None:
        """Say so where the penalty has led far from the target, which is met from now on."""
        reached, m = blocks.pruned_share(self.scored), self.method
        if abs(reached - m.sparsity) > 0.1:
            self.context.record.warn(
                f"The penalty pruned {reached:.0%} for a target of {m.sparsity:.0%}, which was then met at once: "
                f"regularization={m.regularization:g} is too {'much' if reached > m.sparsity else 'little'} for "
                f"score_learning_rate={m.score_learning_rate:g} and so many steps."
            )

    def loss(self) -> Loss:
        """The task's loss, the answers of the original model, the penalty on the scores."""
        task, method = self.context.task, self.method
        label_smoothing = method.training_for(task).label_smoothing or 0.0
        teacher = self.context.original.to(self.context.device).eval()

        def loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            answer = forward(model, inputs)
            value = (1 - method.distill_alpha) * task.loss(answer, targets, label_smoothing=label_smoothing)
            if method.distill_alpha:
                with torch.no_grad():
                    known = forward(teacher, inputs)
                value = value + method.distill_alpha * soft_loss(answer, known, method.temperature)
            return value + method.regularization * self.risen * penalty(self.scored) if self.soft else value

        return loss

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The weights as always, the scores at their own learning rate and without decay."""
        scores = [s.scores for s in self.scored]
        own = {id(s) for s in scores}
        groups = [g | {"params": [p for p in g["params"] if id(p) not in own]} for g in decay_groups(model)]
        return [*groups, {"params": scores, "lr": self.method.score_learning_rate, "weight_decay": 0.0}]

    def report(self) -> None:
        """Draw target and reached sparsity; say so where blocks were too large to meet the target."""
        reached, wanted = blocks.pruned_share(self.scored), self.method.sparsity
        possible = max(wanted, blocks.pruned_before(self.scored))
        self.context.record.metrics({"pruned_share": reached})
        if self.points:
            self.context.record.figure("sparsity-schedule", sparsity_curve(self.points))
        if abs(reached - possible) > amounts.TOLERANCE:
            self.context.record.warn(
                f"Blocks were too large to meet the target: {reached:.1%} of the weights went, not {wanted:.1%}."
            )


def exceed(scored: Sequence[blocks.Scores], threshold: float) -> None:
    """Keep what has a score whose sigmoid is above `threshold`."""
    for scores in scored:
        scores.keep.copy_(scores.scores.detach().sigmoid() > threshold)


def penalty(scored: Sequence[blocks.Scores]) -> Tensor:
    """The mean over all weights of the sigmoid of their score (Sanh et al. 2020, section 4)."""
    sums = torch.stack([(s.scores.sigmoid() * s.sizes).sum() for s in scored])
    return sums.sum() / sum(s.total for s in scored)
