"""Binary networks: weights and inputs in {-1, +1}, a scale for each output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.methods.quantize.fake.aware import Aware
from compression.methods.quantize.fake.rounding import InputRounding, Rounded, Rounding, sign
from compression.methods.quantize.wiring.order import Order
from compression.nn.quantized import TIE_SHIFT, QParams, code_range
from compression.params import param

STEP = 2.0  # from -1 to +1


@dataclass(frozen=True)
class Bnn(Aware):
    """Weights and inputs in {-1, +1}, weights times the mean magnitude of their output channel.

    Courbariaux et al. 2016, arXiv:1602.02830 (gradients pass the sign where |x| <= 1, weights stay in [-1, 1]); scaled
    as in XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279, eq. 6. A ReLU before a binary input would leave nothing
    but ones, so it is taken out, as in both papers' networks.
    """

    binary_inputs: bool = param(True, "inputs in {-1, +1} as well; false leaves them floats (XNOR-Net's BWN)")

    def roundings(self, layer: nn.Linear | nn.Conv2d) -> tuple[Rounding, nn.Module]:
        return ScaledSign(), SignInput() if self.binary_inputs else nn.Identity()

    def prepare(self, model: nn.Module, order: Order, inner: Mapping[str, nn.Module]) -> None:
        for relu, follower in order.relus.items() if self.binary_inputs else []:
            if follower in inner:
                model.set_submodule(relu, nn.Identity())

    @torch.no_grad()
    def on_step(self, model: nn.Module) -> None:
        """Algorithm 1 of Courbariaux et al.: clip the weights that are rounded."""
        for module in model.modules():
            if isinstance(module, Rounded) and isinstance(module.rounding, ScaledSign):
                module.weight.clamp_(-1, 1)


class ScaledSign(Rounding):
    """A weight as its sign times the mean magnitude of its output channel."""

    def forward(self, values: Tensor) -> Tensor:
        return scaled_sign(values)

    def numbers(self, values: Tensor) -> QParams:
        scale = 2 * magnitude(values.detach()).view(-1, 1)
        return QParams(1, scale, torch.full_like(scale, -0.5), *code_range(1, signed=True))


class SignInput(InputRounding):
    """The sign of an input."""

    def forward(self, values: Tensor) -> Tensor:
        return sign_through(values + TIE_SHIFT * STEP)

    def activation(self) -> QParams:
        return QParams(1, torch.tensor(STEP), torch.tensor(0.5), *code_range(1, signed=False))


def sign_through(values: Tensor) -> Tensor:
    """The sign, with gradient 1 where |x| <= 1 and 0 elsewhere: Courbariaux et al., eq. 4."""
    passing = values.clamp(-1, 1)
    return (sign(values) - passing).detach() + passing


def magnitude(weight: Tensor) -> Tensor:
    """Mean |w| of each output, `(outputs, 1, …)`: XNOR-Net, eq. 6."""
    return weight.abs().mean(tuple(range(1, weight.ndim)), keepdim=True)


def scaled_sign(weight: Tensor) -> Tensor:
    """sign(w) mean|w|, whose gradient by w is that by the result times 1/n + mean|w| where |w| <= 1.

    XNOR-Net, section 3.1, n the weights of an output.
    """
    share = (weight - weight.detach()) / weight[0].numel()
    return magnitude(weight).detach() * sign_through(weight) + share
