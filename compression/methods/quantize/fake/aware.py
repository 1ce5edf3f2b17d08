"""Training with weights and inputs rounded on the way: what lsq, dorefa and bnn share.

Layers are swapped for `RoundedLinear` and `RoundedConv2d`, whose roundings let gradients through as their paper
says, trained, and converted to the one quantized representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.quantize.calibration import pictures
from compression.methods.quantize.calibration.activations import batches
from compression.methods.quantize.calibration.selection import SKIP, chosen, tell_recurrent
from compression.methods.quantize.fake.rounding import (
    InputRounding,
    Rounded,
    Rounding,
    deployed,
    foldable,
    rounded,
    trainable,
)
from compression.methods.quantize.fake.steps import learned
from compression.methods.quantize.wiring.between import join
from compression.methods.quantize.wiring.folding import relu_before_pool
from compression.methods.quantize.wiring.order import Order
from compression.nn.inputs import Inputs, forward
from compression.params import group, param
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import fit

SAMPLES = 512  # training examples that show the ranges of what lies between the layers


def convert(model: nn.Module, order: Order) -> nn.Module:
    """`model` with every rounded layer in integers, in place, and the batch norms that follow them folded in."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Rounded):
            norm = order.norms.get(name)
            follows = cast("nn.BatchNorm2d | None", model.get_submodule(norm) if norm else None)
            follows = follows if follows is not None and foldable(layer, follows) else None
            model.set_submodule(name, deployed(layer, follows))
            if norm and follows is not None:
                model.set_submodule(norm, nn.Identity())
    return model


def draw(model: nn.Module, context: Context, data: list[Inputs]) -> None:
    """Pictures of some layers' weights and inputs with the ranges they were trained to."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Rounded)}
    weights = {n: (m.rounding.before(m.weight), m.rounding.numbers(m.weight)) for n, m in layers.items()}
    inputs = {n: m.source.activation() for n, m in layers.items() if isinstance(m.source, InputRounding)}
    pictures.keep_trained(context.record, model, weights, inputs, data)


@dataclass(frozen=True)
class Aware(Method):
    """Training with every linear layer and convolution rounded; the first and the last more finely."""

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    edge_bits: int = param(
        8, "bits of the first and the last layer and their inputs, as in lsq; 0 keeps floats", interval="[0, 8]"
    )
    skip: tuple[str, ...] = param((), SKIP)
    training: Training = group(Training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edge_bits == 1:
            raise UserError("edge_bits=1 is too few for learned steps; it takes 2 to 8, or 0 for floats.")

    def roundings(self, layer: nn.Linear | nn.Conv2d) -> tuple[Rounding, nn.Module]:
        """How to round the weight and the input of a layer that is neither the first nor the last."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, order: Order, inner: Mapping[str, nn.Module]) -> None:
        """What else to change before training; `inner` are the layers between the first and the last."""

    def on_step(self, model: nn.Module) -> None:
        """What to do to the model after an optimizer step."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device)
        relu_before_pool(model)
        inputs = next(context.task.train.to(context.device).batches(256))[0]
        order = Order.of(model, inputs)
        tell_recurrent(model, context.record)
        self.insert(model, order)
        with torch.no_grad():  # roundings choose their first numbers by the first values they meet
            forward(model.eval(), inputs)
        model = fit(model, context, self.training, on_step=lambda step, steps: self.on_step(model))
        data = batches(context, SAMPLES)
        draw(model, context, data)
        return join(convert(model, order), data)

    def insert(self, model: nn.Module, order: Order) -> None:
        """Swap the layers, in place."""
        found = [name for name in order.layers if trainable(model.get_submodule(name))]
        left = chosen(model, found, self.skip)
        edges = {order.layers[0], order.layers[-1]}
        inner = {name: model.get_submodule(name) for name in left if name not in edges}
        self.prepare(model, order, inner)
        for name in left:
            layer = cast("nn.Linear | nn.Conv2d", model.get_submodule(name))
            if name in inner:
                model.set_submodule(name, rounded(layer, *self.roundings(layer)))
            elif self.edge_bits:
                model.set_submodule(name, rounded(layer, *learned(layer, self.edge_bits, self.edge_bits)))
