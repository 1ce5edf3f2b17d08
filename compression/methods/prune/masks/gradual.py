"""What the pruners by magnitude share: the way to their sparsity, at once or along a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from compression import models
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.prune.masks import amounts
from compression.methods.prune.masks.schedule import RISING, SCHEDULES, ramp, target
from compression.methods.prune.masks.scores import set_also
from compression.nn import layers
from compression.params import group, param
from compression.reporting.figures.prune import sparsity_curve
from compression.training.context import Context
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import fit

RAMPED = {"sparsity_schedule": RISING}
LOTTERY = {"sparsity_schedule": ("lottery",)}


@dataclass(frozen=True)
class Gradual(Method):
    """Masks that come to their sparsity by a schedule. With `oneshot` nothing trains and the recipe is not used."""

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
    ramp_start: float = param(0.0, "share of the training before pruning begins", interval="[0, 1)", when=RAMPED)
    ramp_end: float = param(
        0.75, "share of the training after which the sparsity stays", interval="(0, 1]", when=RAMPED
    )
    updates: int = param(50, "number of mask updates on the way", interval="[1, inf)", when=RAMPED)
    rounds: int = param(3, "times that weights are pruned and rewound", interval="[1, inf)", when=LOTTERY)
    rewind: int = param(
        0, "epoch to whose end weights are rewound; 0 = before the first", interval="[0, inf)", when=LOTTERY
    )
    # The last weights are kept: the best epoch may lie before the target sparsity.
    training: Training = group(Training, fixed={"keep": "last"}, when={"sparsity_schedule": (*RISING, "lottery")})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ramp_start >= self.ramp_end:
            raise UserError(f"ramp_start={self.ramp_start} is not before ramp_end={self.ramp_end}; it must be less.")

    @property
    def reinitializes(self) -> bool:
        return self.sparsity_schedule == "lottery"

    def masks(self, model: nn.Module, shares: Mapping[str, float], context: Context) -> dict[str, Tensor]:
        """Which weights to keep in each layer that `shares` names, so that the share of the others is as it says."""
        raise NotImplementedError

    def targets(self, model: nn.Module) -> dict[str, float]:
        """The sparsity that each layer is to end at; UserError where `layers` names none."""
        names = self.candidates(model)
        return dict.fromkeys(names, self.sparsity) | amounts.resolve(self.layers, names)

    def candidates(self, model: nn.Module) -> Iterable[str]:
        """The layers that this method prunes."""
        return layers.prunable_layers(model)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device)
        course = Course(self, self.targets(model), context)
        before = amounts.sparsity(model)
        ways = {"oneshot": course.at_once, "lottery": course.lottery}
        model = ways.get(self.sparsity_schedule, course.ramp)(model)
        amounts.report(before, model, amounts.total(course.finals, model), context.record)
        return model


@dataclass(frozen=True)
class Course:
    """One model's way from dense to the sparsity `finals` of each layer."""

    method: Gradual
    finals: dict[str, float]
    context: Context

    def at_once(self, model: nn.Module) -> nn.Module:
        before = self.reached(model)
        self.context.record.figure(
            "sparsity-schedule", sparsity_curve([(0, 0.0, before), (1, *self.prune(model, self.finals))])
        )
        return model

    def ramp(self, model: nn.Module) -> nn.Module:
        """Prune more and more during a training; what is pruned stays so, for its weights are zero."""
        method, points = self.method, [(0, 0.0, self.reached(model))]
        require_training(
            method.training, self.context.task.training, f"sparsity_schedule={method.sparsity_schedule} prunes"
        )

        def stage(step: int, steps: int) -> int:
            done = ramp(step / steps, method.ramp_start, 1 - method.ramp_end)
            return math.floor(done * method.updates + 1e-9)

        def on_step(step: int, steps: int) -> None:
            if stage(step, steps) != stage(step - 1, steps):
                points.append((step, *self.prune(model, self.wanted(stage(step, steps) / method.updates))))

        model = fit(model, self.context, method.training, on_step=on_step, extra=self.open_masks(model))
        points.append((points[-1][0] + 1, *self.prune(model, self.finals)))
        self.context.record.figure("sparsity-schedule", sparsity_curve(points))
        return model

    def lottery(self, model: nn.Module) -> nn.Module:
        """Train, prune the smallest, put the others back to where they came from, and again.

        Frankle & Carbin 2019, arXiv:1803.03635, strategy 2 of its appendix; to a later epoch: Frankle et al. 2020,
        arXiv:1912.05671. A transformer goes back to the weights that it was given: as `baseline` give the pretrained
        model, not a fine-tuned one, for Chen et al. 2020, arXiv:2007.12223.
        """
        method, model = self.method, beginning(model, self.context)
        require_training(method.training, self.context.task.training, "sparsity_schedule=lottery draws tickets")
        early = Tensors(value.clone() for value in model.state_dict().values())
        epochs = method.training_for(self.context.task).epochs or 0
        if method.rewind > epochs:
            raise UserError(f"rewind={method.rewind} lies after the last of {epochs} epochs; it must not.")

        def remember(step: int, steps: int) -> None:
            if step * epochs == method.rewind * steps:
                early.copy(model.state_dict().values())

        points = [(0, 0.0, self.reached(model))]
        fit(model, self.context, method.training, on_step=remember, extra=early, name="round-0")
        for number in range(1, method.rounds + 1):
            points.append((number, *self.prune(model, self.wanted(number / method.rounds))))
            model.load_state_dict(dict(zip(model.state_dict(), early.buffers(), strict=True)))
            layers.apply_masks(model)
            fit(model, self.context, method.training, name=f"round-{number}")
        self.context.record.figure("sparsity-schedule", sparsity_curve(points, "round"))
        return model

    def wanted(self, done: float) -> dict[str, float]:
        """The sparsity of each layer when the share `done` of the way is gone."""
        schedule = self.method.sparsity_schedule
        return {name: target(schedule, done, 0.0, final) for name, final in self.finals.items()}

    def prune(self, model: nn.Module, shares: dict[str, float]) -> tuple[float, float]:
        """Mask `model` down to `shares`; the sparsity that was wanted and the one reached, over all these layers."""
        for name, keep in self.method.masks(model, shares, self.context).items():
            narrow(model.get_submodule(name), keep)
        return amounts.total(shares, model), self.reached(model)

    def reached(self, model: nn.Module) -> float:
        found = amounts.sparsity(model)
        return amounts.total({name: found[name] for name in self.finals}, model)

    def open_masks(self, model: nn.Module) -> Tensors:
        """Give every layer a mask now, to be narrowed in place, so that checkpoints hold the masks of their epoch."""
        found = [model.get_submodule(name) for name in self.finals]
        for layer in found:
            set_also(layer, torch.ones_like(layers.weight(layer), dtype=torch.bool))
        return Tensors(cast(Tensor, layer.mask) for layer in found)


def narrow(layer: nn.Module, keep: Tensor) -> None:
    """Mask the layer by `keep` as well: its mask in place where it has one."""
    earlier = getattr(layer, "mask", None)
    if isinstance(earlier, Tensor):
        earlier.logical_and_(keep)
        layers.apply_mask(layer)
    else:
        layers.set_mask(layer, keep)


def beginning(model: nn.Module, context: Context) -> nn.Module:
    """The model as it was before it was first trained; UserError where an earlier step changed it since."""
    if hasattr(model, "config"):
        return model
    if context.model_changed:
        raise UserError("lottery goes back to the weights a training began with, so it must be the first step.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return models.rebuild(models.spec_of(model)).to(context.device)


class Tensors(nn.Module):
    """Tensors that travel in the checkpoint of a training and are loaded in place."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        for mine, theirs in zip(self.buffers(), tensors, strict=True):
            mine.copy_(theirs)
