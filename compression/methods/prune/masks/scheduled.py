"""The base of pruners whose sparsity follows a schedule: at once, along a training, or over rounds of trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003  # params.fields evaluates the types of fields
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from compression import models
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.prune.masks.schedule import RAMPS, SCHEDULES, ramp, require_ramp, scheduled_value
from compression.methods.prune.masks.scores import intersect_mask
from compression.methods.prune.masks.sparsity import layer_sparsities, layer_targets, log_sparsities, mean_sparsity
from compression.nn import layers
from compression.params import group, param
from compression.reporting.figures.prune import sparsity_curve
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.methods.prune.masks.scores import Masks
    from compression.training.context import Context

WITH_RAMP = {"sparsity_schedule": RAMPS}
WITH_LOTTERY = {"sparsity_schedule": ("lottery",)}


@dataclass(frozen=True)
class ScheduledPruning(Method):
    """Masks that reach their sparsity by a schedule. With `oneshot`, nothing is trained."""

    family: ClassVar[str] = "prune"

    sparsity: float = param(0.5, "share of the weights to prune", interval="[0, 1)", search=(0.3, 0.95))
    layers: Mapping[str, float] = param(
        {},
        "sparsity of single layers or parts of the model, conv1:0.3/stages.0:0.5; the others get `sparsity`",
        interval="[0, 1)",
    )
    sparsity_schedule: str = param(
        "oneshot",
        "way to the sparsity: at once without training, linear, agp (cubic) or lottery (rewinding)",
        choices=tuple(SCHEDULES),
    )
    ramp_start: float = param(0.0, "share of the training before pruning begins", interval="[0, 1)", when=WITH_RAMP)
    ramp_end: float = param(
        0.75, "share of the training after which the sparsity stays", interval="(0, 1]", when=WITH_RAMP
    )
    updates: int = param(50, "number of mask updates on the way", interval="[1, inf)", when=WITH_RAMP)
    rounds: int = param(3, "times that weights are pruned and rewound", interval="[1, inf)", when=WITH_LOTTERY)
    rewind: int = param(
        0, "epoch to whose end weights are rewound; 0 = before the first", interval="[0, inf)", when=WITH_LOTTERY
    )
    # The last weights are kept: the best epoch may lie before the target sparsity.
    training: Training = group(Training, fixed={"keep": "last"}, when={"sparsity_schedule": (*RAMPS, "lottery")})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ramp(self.ramp_start, self.ramp_end)

    @property
    def reinitializes(self) -> bool:
        """A lottery rewinds to weights from before the training."""
        return self.sparsity_schedule == "lottery"

    def masks(self, model: nn.Module, sparsities: Mapping[str, float], context: Context) -> Masks:
        """The weights to keep of each layer in `sparsities`, so that it has the sparsity given there."""
        raise NotImplementedError

    def final_sparsities(self, model: nn.Module) -> dict[str, float]:
        """The sparsity that each layer is to end at. Raises UserError for a name in `layers` that fits none."""
        names = self.prunable_layers(model)
        return dict.fromkeys(names, self.sparsity) | layer_targets(self.layers, names)

    def prunable_layers(self, model: nn.Module) -> Iterable[str]:
        """The names of the layers that this method prunes."""
        return layers.prunable_layers(model)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Prune `model` in place by the schedule, and log target and achieved sparsities."""
        model = model.to(context.device)
        loop = PruningLoop(self, self.final_sparsities(model), context)
        before = layer_sparsities(model)
        runs = {"oneshot": loop.prune_at_once, "lottery": loop.draw_lottery_ticket}
        model = runs.get(self.sparsity_schedule, loop.prune_along_training)(model)
        log_sparsities(before, model, mean_sparsity(loop.final_sparsities, model), context.record)
        return model


@dataclass(frozen=True)
class PruningLoop:
    """Takes one model from its present sparsity to the final sparsity of each layer."""

    method: ScheduledPruning
    final_sparsities: dict[str, float]
    context: Context

    def prune_at_once(self, model: nn.Module) -> nn.Module:
        """Prune without training."""
        before = self.achieved_sparsity(model)
        self.log_curve([(0, 0.0, before), (1, *self.prune(model, self.final_sparsities))], "step")
        return model

    def prune_along_training(self, model: nn.Module) -> nn.Module:
        """Prune more and more during one training; pruned weights stay so: they are zero, so their scores are least."""
        method = self.method
        curve = [(0, 0.0, self.achieved_sparsity(model))]
        require_training(
            method.training, self.context.task.training, f"sparsity_schedule={method.sparsity_schedule} prunes"
        )

        def updates_due(step: int, steps: int) -> int:
            progress = ramp(step / steps, method.ramp_start, 1 - method.ramp_end)
            return math.floor(progress * method.updates + 1e-9)  # 0.29 * 100 is 28.999999999999996

        def on_step(step: int, steps: int) -> None:
            if (due := updates_due(step, steps)) != updates_due(step - 1, steps):
                curve.append((step, *self.prune(model, self.scheduled_sparsities(due / method.updates))))

        model = fit(model, self.context, method.training, on_step=on_step, extra=self.create_masks(model))
        curve.append((curve[-1][0] + 1, *self.prune(model, self.final_sparsities)))
        self.log_curve(curve, "step")
        return model

    def draw_lottery_ticket(self, model: nn.Module) -> nn.Module:
        """Train, prune the smallest weights, rewind the others to their early values, and repeat.

        Frankle & Carbin 2019, arXiv:1803.03635, strategy 2 of its appendix; rewinding to a later epoch: Frankle et al.
        2020, arXiv:1912.05671. A transformer is rewound to the weights that it was given: as `baseline` give the
        pretrained model, not a fine-tuned one, for Chen et al. 2020, arXiv:2007.12223.

        Raises UserError if `rewind` is more than the number of epochs, or if an earlier step changed the model.
        """
        method, model = self.method, initial_model(model, self.context)
        require_training(method.training, self.context.task.training, "sparsity_schedule=lottery draws tickets")
        # Copies, and `extra` of the first round: its checkpoints have them, so that a run killed after the epoch to
        # rewind to still rewinds to the same weights.
        early = SavedTensors(value.clone() for value in model.state_dict().values())
        epochs = method.training_for(self.context.task).epochs or 0
        if method.rewind > epochs:
            raise UserError(f"rewind={method.rewind} lies after the last of {epochs} epochs; it must not.")

        def save_early_weights(step: int, steps: int) -> None:
            # rewind / epochs of the way, compared in whole numbers
            if step * epochs == method.rewind * steps:
                early.copy_from(model.state_dict().values())

        curve = [(0, 0.0, self.achieved_sparsity(model))]
        fit(model, self.context, method.training, on_step=save_early_weights, extra=early, name="round-0")
        for number in range(1, method.rounds + 1):
            curve.append((number, *self.prune(model, self.scheduled_sparsities(number / method.rounds))))
            # Masks are not in the state dict, so they stay; they are applied again to the weights that come back.
            model.load_state_dict(dict(zip(model.state_dict(), early.buffers(), strict=True)))
            layers.apply_masks(model)
            fit(model, self.context, method.training, name=f"round-{number}")
        self.log_curve(curve, "round")
        return model

    def scheduled_sparsities(self, progress: float) -> dict[str, float]:
        """The sparsity of each layer at `progress` in [0, 1], without warm-up and cool-down."""
        schedule = self.method.sparsity_schedule
        return {name: scheduled_value(schedule, progress, 0.0, final) for name, final in self.final_sparsities.items()}

    def prune(self, model: nn.Module, sparsities: dict[str, float]) -> tuple[float, float]:
        """Mask `model` to `sparsities`, in place; the target and the achieved sparsity over all these layers."""
        for name, keep in self.method.masks(model, sparsities, self.context).items():
            intersect_mask(model.get_submodule(name), keep)
        return mean_sparsity(sparsities, model), self.achieved_sparsity(model)

    def achieved_sparsity(self, model: nn.Module) -> float:
        """The present sparsity over all layers that are pruned."""
        present = layer_sparsities(model)
        return mean_sparsity({name: present[name] for name in self.final_sparsities}, model)

    def create_masks(self, model: nn.Module) -> SavedTensors:
        """Give every layer a mask, to be changed in place, so that each epoch's checkpoint holds the epoch's masks."""
        modules = [model.get_submodule(name) for name in self.final_sparsities]
        for module in modules:
            intersect_mask(module, torch.ones_like(layers.weight(module), dtype=torch.bool))
        # The same tensors under a second name; on the device already, so `fit` does not part them by moving them.
        return SavedTensors(cast("Tensor", module.mask) for module in modules)

    def log_curve(self, curve: Sequence[tuple[float, float, float]], unit: str) -> None:
        """Log the figure of points (step or round, target, achieved sparsity)."""
        self.context.record.figure("sparsity-schedule", sparsity_curve(curve, unit))


def initial_model(model: nn.Module, context: Context) -> nn.Module:
    """The model as it was before its first training. Raises UserError where an earlier step changed it since.

    A network that the lab builds is initialised anew, from the run's seed; a transformer is taken as it was given.
    """
    if hasattr(model, "config"):
        return model
    if context.model_changed:
        raise UserError("lottery goes back to the weights a training began with, so it must be the first step.")
    # New weights must not move the generator that the training draws from.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return models.rebuild(models.spec_of(model)).to(context.device)


class SavedTensors(nn.Module):
    """Tensors that a training's checkpoints save, and that a resumed training loads in place."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor)

    def copy_from(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with new values of the same shapes, in their order."""
        for saved, value in zip(self.buffers(), tensors, strict=True):
            saved.copy_(value)
