"""L0 pruning of transformers: gates on their units are learned with the weights, to a given sparsity."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.base import Method
from compression.methods.distill.response import soft_loss
from compression.methods.prune.masks.schedule import RAMPS, require_ramp, scheduled_value
from compression.methods.prune.masks.training_progress import TrainingProgress
from compression.methods.prune.structure.cofi import EncoderGates, attach_gates, detach_gates
from compression.methods.prune.structure.layer_sizes import layer_sizes, log_layer_sizes
from compression.nn import transformer
from compression.nn.inputs import Inputs, answers, attention_mask
from compression.params import group, param
from compression.reporting.figures.prune import sparsity_curve
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import decay_groups, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.training.context import Context

TEACHER_LAYERS = 4  # layers of the original that teach: every third of twelve, as in CoFi
TOLERANCE = 0.02  # an expected sparsity further from the target than this gets a warning


@dataclass(frozen=True)
class L0(Method):
    """Learn which layers, heads, neurons and hidden dimensions to keep, and cut the others.  CoFi: Xia et al. 2022,
    arXiv:2204.00408.

    Gates are hard concrete (Louizos et al. 2018, arXiv:1712.01312). Two multipliers drive their expected number to
    the sparsity (Wang et al. 2020, arXiv:1910.04732), which counts the weights of the attentions and feed-forward
    parts. Layers of the original model teach those of the pruned model that are most like them.
    """

    family: ClassVar[str] = "prune"
    requires: ClassVar[str] = "text"

    sparsity: float = param(0.5, "share of the encoder's weights to cut", interval="[0, 1)", search=(0.3, 0.95))
    sparsity_schedule: str = param("linear", "how the target rises during the training", choices=RAMPS)
    ramp_start: float = param(0.0, "share of the training before the target rises from 0 (warm-up)", interval="[0, 1)")
    ramp_end: float = param(0.4, "share of the training at which the target is the whole sparsity", interval="(0, 1]")
    mask_learning_rate: float = param(
        0.1, "peak learning rate of the gates", interval="(0, 1e6]", search=(1e-2, 1.0), log=True
    )
    multiplier_learning_rate: float = param(
        0.1, "peak learning rate of the two multipliers", interval="(0, 1e6]", search=(1e-2, 1.0), log=True
    )
    distill_alpha: float = param(0.5, "weight of the original model in the loss", interval="[0, 1]")
    layer_share: float = param(0.5, "share of that which its layers have; the rest is its outputs'", interval="[0, 1]")
    temperature: float = param(2.0, "softening of both outputs", interval="[0.01, 1000]")
    # The last weights are kept: the best epoch may lie before the target sparsity.
    training: Training = group(Training, fixed={"keep": "last"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ramp(self.ramp_start, self.ramp_end)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train with gates, then cut `model` in place to the sparsity.

        Raises UserError as `check` does.
        """
        self.check(model, context)
        require_training(self.training, context.task.training, "Gates are learned")
        before = layer_sizes(model)
        loop = GateTraining(self.resolved(context.task), context, model, GateParameters(model, context.original))
        attach_gates(model.to(context.device), loop.parameters.gates)
        fit(
            model,
            context,
            self.training,
            loss=loop.loss,
            on_step=loop.on_step,
            extra=loop.parameters,
            parameter_groups=loop.parameter_groups,
        )
        model = detach_gates(model, loop.parameters.gates, loop.final_gates())
        log_layer_sizes(before, layer_sizes(model), context.record)
        context.record.figure("sparsity-schedule", sparsity_curve(loop.curve))
        return model

    def check(self, model: nn.Module, context: Context) -> None:  # noqa: ARG002 - the base's signature
        """Raise UserError for a model that is no transformer, and for a decoder."""
        transformer.architecture(model)
        transformer.require_encoder(model, "l0 has no gates for the heads and neurons of")


class GateParameters(nn.Module):
    """All that is learned besides the model's weights, and the progress of the training."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.gates = EncoderGates(model)
        self.multipliers = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(2)])
        self.projection = nn.Linear(transformer.hidden_size(model), transformer.hidden_size(teacher), bias=False)
        # The identity: at first the student's hidden states are the teacher's.
        nn.init.eye_(self.projection.weight)
        self.progress = TrainingProgress()

    def constraint(self, target: float) -> Tensor:
        """The Lagrangian term lambda_1 (s - t) + lambda_2 (s - t)^2 for the expected sparsity s, a scalar.

        Xia et al. 2022, section 3.1.
        """
        gap = self.gates.expected_sparsity() - target
        value: Tensor = self.multipliers[0] * gap + self.multipliers[1] * gap.square()
        return value


@dataclass
class GateTraining:
    """The training of gates: the target sparsity at each step, the loss, and the optimizer's groups."""

    method: L0
    context: Context
    model: nn.Module
    parameters: GateParameters
    curve: list[tuple[float, float, float]] = field(default_factory=list)  # step, target, achieved sparsity

    @property
    def target(self) -> float:
        """The sparsity that the multipliers drive at in the present step."""
        m, progress = self.method, self.parameters.progress.fraction
        return scheduled_value(m.sparsity_schedule, progress, 0.0, m.sparsity, m.ramp_start, cooldown=1 - m.ramp_end)

    @torch.no_grad()
    def on_step(self, step: int, steps: int) -> None:
        """Update the progress and add to the curve, which has about 100 points."""
        self.parameters.progress.fraction = step / steps
        if step % math.ceil(steps / 100) == 0 or step == steps:
            gates = self.parameters.gates
            self.curve.append((step, self.target, gates.sparsity([row.discretized() for row in gates.rows()])))

    def loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """The task's loss, the distillation loss and the constraint, with newly sampled gates; a scalar."""
        self.parameters.gates.sample()
        m, task = self.method, self.context.task
        # `model` may be accelerate's wrapper: hooks go to the network itself.
        with transformer.record_hidden_states(self.model) as states:
            logits, wanted = answers(model, inputs, targets)
        value: Tensor = task.loss(logits, wanted, label_smoothing=m.training.label_smoothing or 0.0)
        value = (1 - m.distill_alpha) * value
        if m.distill_alpha:
            hidden = [after for _, after in states]
            value = value + m.distill_alpha * self.distillation_loss(logits, hidden, inputs, targets)
        return value + self.parameters.constraint(self.target)

    def distillation_loss(self, logits: Tensor, states: Sequence[Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        """The loss against the original model's logits and hidden states on `inputs`, a scalar.

        `logits` as `nn.inputs.answers` gives them, `states` `(batch, length, hidden)` of each layer.
        """
        m, teacher = self.method, self.context.original.to(self.context.device).eval()
        with torch.no_grad(), transformer.record_hidden_states(teacher) as teacher_states:
            teacher_logits, _ = answers(teacher, inputs, targets)
        value = (1 - m.layer_share) * soft_loss(logits, teacher_logits, m.temperature)
        if not m.layer_share:
            return value
        mask = attention_mask(inputs)
        assert mask is not None  # of texts, which transformers take
        return value + m.layer_share * layer_distillation_loss(
            [self.parameters.projection(state) for state in states],
            [after for _, after in teacher_states],
            # a layer lives while its feed-forward part is open
            alive=self.parameters.gates.ffn.sampled > 0,
            attention_mask=mask,
        )

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimizer's groups: weights as usual, gates at their own rate, multipliers maximized."""
        m, gates = self.method, [row.log_alpha for row in self.parameters.gates.rows()]
        multipliers = list(self.parameters.multipliers)
        own = {id(p) for p in [*gates, *multipliers]}
        weights = [g | {"params": [p for p in g["params"] if id(p) not in own]} for g in decay_groups(model)]
        return [
            *weights,
            {"params": gates, "lr": m.mask_learning_rate, "weight_decay": 0.0},
            # Gradient ascent: a multiplier grows for as long as the sparsity is off the target.
            {"params": multipliers, "lr": m.multiplier_learning_rate, "maximize": True, "weight_decay": 0.0},
        ]

    def final_gates(self) -> list[Tensor]:
        """The discretized values of each row of gates, which meet the target; warn if the training alone had not."""
        gates, target = self.parameters.gates, self.method.sparsity
        expected = gates.expected_sparsity().item()
        if abs(expected - target) > TOLERANCE:
            self.context.record.warn(
                f"The multipliers led to {expected:.1%} for a target of {target:.0%}, which was then met at once: "
                "train for more steps (some hundreds are needed), or raise mask_learning_rate."
            )
        return gates.discretize(target)


def layer_distillation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], alive: Tensor, attention_mask: Tensor
) -> Tensor:
    """The mean squared difference of layers' hidden states `(batch, length, hidden)` on tokens without padding.

    TEACHER_LAYERS of the teacher's layers, evenly spread, are each compared with the student's layer that is closest,
    among those `alive` `(layers,)` (all, if none is). Xia et al. 2022, eq. 4.
    """
    count = min(TEACHER_LAYERS, len(teacher))
    teaching = [teacher[round((i + 1) * len(teacher) / count) - 1] for i in range(count)]
    learning = [state for state, is_alive in zip(student, alive.tolist(), strict=True) if is_alive] or list(student)
    mask = attention_mask.bool()
    # (teaching, learning)
    distances = torch.stack([torch.stack([F.mse_loss(s[mask], t[mask]) for s in learning]) for t in teaching])
    return distances.min(1).values.mean()
