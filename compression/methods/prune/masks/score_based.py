"""The base of pruners by learned scores: scores of blocks are trained together with the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.distill.response import soft_loss
from compression.methods.prune.masks import block_scores
from compression.methods.prune.masks.schedule import RAMPS, require_ramp, scheduled_value
from compression.methods.prune.masks.sparsity import TOLERANCE, layer_sparsities, log_sparsities
from compression.methods.prune.masks.training_progress import TrainingProgress
from compression.nn.inputs import Inputs, answers
from compression.params import group, param
from compression.reporting.figures.prune import sparsity_curve
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import Loss, decay_groups, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.methods.prune.masks.block_scores import BlockScores, GriddedLayer
    from compression.training.context import Context

INITIAL_SIGMOID_SCORE = math.log(0.9 / 0.1)  # a sigmoid of 0.9, as in Sanh et al. 2020
PENALTY_TOLERANCE = 0.1  # a target that the penalty alone misses by more than this share gets a warning

WITH_TOPK, WITH_SIGMOID = {"variant": ("topk",)}, {"variant": ("sigmoid",)}


@dataclass(frozen=True)
class ScoreBasedPruning(Method):
    """Pruners that learn scores and weights in one training, and keep the blocks with the highest scores."""

    family: ClassVar[str] = "prune"

    sparsity: float = param(0.5, "share of the weights to prune", interval="[0, 1)", search=(0.3, 0.95))
    variant: str = param(
        "topk",
        "topk keeps the share of the highest scores (hard); sigmoid those above a threshold, which a penalty pushes "
        "them below (soft), and the highest once the cool-down begins",
        choices=("topk", "sigmoid"),
    )
    scope: str = param(
        "local", "rank within each layer, or all layers together", choices=("local", "global"), when=WITH_TOPK
    )
    # Scores begin equal, and the rate scales every step of theirs alike: what topk ranks does not change with it.
    score_learning_rate: float = param(
        0.01,
        "peak learning rate of the scores (a ranking by topk does not depend on it)",
        interval="(0, 1e6]",
        search=(1e-3, 1.0),
        log=True,
        when=WITH_SIGMOID,
    )
    sparsity_schedule: str = param("agp", "how it rises from warm-up to cool-down", choices=RAMPS)
    ramp_start: float = param(0.1, "share of the training before pruning begins (warm-up)", interval="[0, 1)")
    ramp_end: float = param(0.7, "share of the training after which the sparsity stays (cool-down)", interval="(0, 1]")
    threshold: float = param(0.1, "what a score's sigmoid must exceed in the end", interval="(0, 1)", when=WITH_SIGMOID)
    regularization: float = param(
        100.0,
        "weight of the scores' mean sigmoid in the loss",
        interval="[0, inf)",
        search=(1.0, 1000.0),
        log=True,
        when=WITH_SIGMOID,
    )
    distill_alpha: float = param(0.0, "weight of the original model's outputs in the loss", interval="[0, 1]")
    temperature: float = param(2.0, "softening of both outputs, if distill_alpha > 0", interval="[0.01, 1000]")
    # The last weights are kept: the best epoch may lie before the target sparsity.
    training: Training = group(Training, fixed={"keep": "last"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ramp(self.ramp_start, self.ramp_end)

    def inactive(self) -> frozenset[str]:
        """Without distillation there is no temperature."""
        return super().inactive() | (set() if self.distill_alpha else {"temperature"})

    def groups(self, model: nn.Module) -> list[list[GriddedLayer]]:
        """The layers to score, divided into blocks; layers that share their scores stand in one list."""
        raise NotImplementedError

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train scores and weights, then mask the blocks whose scores are too low; in place."""
        require_training(self.training, context.task.training, "Scores are learned")
        model = model.to(context.device)
        before = layer_sparsities(model)
        initial = INITIAL_SIGMOID_SCORE if self.variant == "sigmoid" else 0.0
        loop = ScoreTraining(self, block_scores.attach_scores(model, self.groups(model), initial), context)
        fit(
            model,
            context,
            self.training,
            loss=loop.loss(),
            on_step=loop.on_step,
            extra=loop.progress,
            parameter_groups=loop.parameter_groups,
        )
        loop.report()
        log_sparsities(before, block_scores.detach_scores(model), self.sparsity, context.record)
        return model


@dataclass
class ScoreTraining:
    """The training of scores: the blocks that are kept at each step, the loss, and the optimizer's groups."""

    method: ScoreBasedPruning
    groups: Sequence[BlockScores]
    context: Context
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    curve: list[tuple[float, float, float]] = field(default_factory=list)  # step, target, achieved sparsity

    @property
    def ramp(self) -> float:
        """The share of the final sparsity (or threshold, or penalty) that the schedule asks for at present."""
        m = self.method
        return scheduled_value(
            m.sparsity_schedule, self.progress.fraction, 0.0, 1.0, m.ramp_start, cooldown=1 - m.ramp_end
        )

    @property
    def uses_threshold(self) -> bool:
        """Whether a threshold on the scores decides at present, as in the sigmoid variant before its cool-down."""
        return self.method.variant == "sigmoid" and self.progress.fraction < self.method.ramp_end

    def on_step(self, step: int, steps: int) -> None:
        """Choose the blocks to keep in the next step, and add to the curve, which has about 100 points."""
        # Asked before the progress moves on: the gap is told once, when the last step with a threshold is over.
        used_threshold, self.progress.fraction = self.uses_threshold, step / steps
        if self.uses_threshold:
            apply_threshold(self.groups, self.method.threshold * self.ramp)
        else:
            if used_threshold:
                self.warn_of_gap()
            self.select(self.method.sparsity * self.ramp)
        if step % math.ceil(steps / 100) == 0 or step == steps:
            self.curve.append((step, self.method.sparsity * self.ramp, block_scores.achieved_sparsity(self.groups)))

    def select(self, sparsity: float) -> None:
        """Keep the blocks with the highest scores."""
        if self.method.variant == "topk" and self.method.scope == "local":
            block_scores.select_locally(self.groups, sparsity)
        else:  # the sigmoid's threshold is the same for blocks of any size
            block_scores.select_globally(self.groups, sparsity, per_weight=self.method.variant == "topk")

    def warn_of_gap(self) -> None:
        """Warn if the penalty has led far from the target, which is met exactly from now on."""
        achieved, m = block_scores.achieved_sparsity(self.groups), self.method
        if abs(achieved - m.sparsity) > PENALTY_TOLERANCE:
            self.context.record.warn(
                f"The penalty pruned {achieved:.0%} for a target of {m.sparsity:.0%}, which was then met at once: "
                f"regularization={m.regularization:g} is too {'much' if achieved > m.sparsity else 'little'} for "
                f"score_learning_rate={m.score_learning_rate:g} and so many steps."
            )

    def loss(self) -> Loss:
        """The loss function: the task's loss, distillation from the original model, and the penalty on the scores."""
        task, method = self.context.task, self.method
        label_smoothing = method.training_for(task).label_smoothing or 0.0
        teacher = self.context.original.to(self.context.device).eval()

        def loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            logits, wanted = answers(model, inputs, targets)
            value: Tensor = (1 - method.distill_alpha) * task.loss(logits, wanted, label_smoothing=label_smoothing)
            if method.distill_alpha:
                with torch.no_grad():
                    teacher_logits, _ = answers(teacher, inputs, targets)
                value = value + method.distill_alpha * soft_loss(logits, teacher_logits, method.temperature)
            if self.uses_threshold:
                value = value + method.regularization * self.ramp * mean_sigmoid(self.groups)
            return value

        return loss

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimizer's groups: weights as usual, scores at their own learning rate and without decay."""
        # The scores are parameters of the model's ScoredLayers, so `decay_groups` has them among its vectors.
        scores = [s.scores for s in self.groups]
        score_ids = {id(s) for s in scores}
        weights = [g | {"params": [p for p in g["params"] if id(p) not in score_ids]} for g in decay_groups(model)]
        return [*weights, {"params": scores, "lr": self.method.score_learning_rate, "weight_decay": 0.0}]

    def report(self) -> None:
        """Log achieved sparsity and curve; warn if blocks were too large to meet the target."""
        achieved, target = block_scores.achieved_sparsity(self.groups), self.method.sparsity
        possible = max(target, block_scores.earlier_sparsity(self.groups))
        self.context.record.metrics({"pruned_share": achieved})
        if self.curve:
            self.context.record.figure("sparsity-schedule", sparsity_curve(self.curve))
        if abs(achieved - possible) > TOLERANCE:
            self.context.record.warn(
                f"Blocks were too large to meet the target: {achieved:.1%} of the weights went, not {target:.1%}."
            )


def apply_threshold(groups: Sequence[BlockScores], threshold: float) -> None:
    """Keep the blocks whose score has a sigmoid above `threshold`."""
    for scores in groups:
        scores.keep.copy_(scores.scores.detach().sigmoid() > threshold)


def mean_sigmoid(groups: Sequence[BlockScores]) -> Tensor:
    """The mean over all weights of the sigmoid of their score, a scalar: the penalty of Sanh et al. 2020, section 4."""
    sums = torch.stack([(s.scores.sigmoid() * s.sizes).sum() for s in groups])
    return sums.sum() / sum(s.total for s in groups)
