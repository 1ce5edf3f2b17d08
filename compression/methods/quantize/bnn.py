"""Binary networks: weights and inputs in {-1, +1}, with a scale for each output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.methods.quantize.fake_quant.base import FakeQuantTraining
from compression.methods.quantize.fake_quant.layers import FakeQuantLayer, InputFakeQuantize, WeightFakeQuantize
from compression.methods.quantize.fake_quant.ste import sign_ste
from compression.nn.graph import replace_module
from compression.nn.layers import PRUNABLE
from compression.nn.quantized import TIE_SHIFT, QParams, code_range
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compression.nn.graph import Graph, Node

STEP = 2.0  # from -1 to +1
# What makes no value negative: behind a ReLU and any of these, every binary input would be +1. A batch norm in between
# gives both signs again, and there the ReLU stays.
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Flatten)
RESHAPING = (torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape)


@dataclass(frozen=True)
class Bnn(FakeQuantTraining):
    """Weights and inputs in {-1, +1}, weights times the mean magnitude of their output channel.

    Courbariaux et al. 2016, arXiv:1602.02830 (gradients pass the sign where |x| <= 1, weights stay in [-1, 1]); scaled
    as in XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279, eq. 6; its scales of inputs (section 3.2) are left out. A
    ReLU before a binary input would leave nothing but ones, so it is removed, as in both papers' networks.
    """

    binary_inputs: bool = param(True, "inputs in {-1, +1} as well; false leaves them floats (XNOR-Net's BWN)")

    def fake_quantizers(self, layer: nn.Linear | nn.Conv2d) -> tuple[WeightFakeQuantize, nn.Module]:  # noqa: ARG002
        """Signs, those of the weight with a scale for each output."""
        return ScaledSignWeight(), SignInput() if self.binary_inputs else nn.Identity()

    def prepare(self, model: nn.Module, graph: Graph, inner: Mapping[str, nn.Module]) -> None:
        """Remove the ReLUs before binary inputs."""
        if not self.binary_inputs:
            return
        for node in graph.nodes:
            if isinstance(node.target, nn.ReLU) and next_layers(graph, node).intersection(inner):
                replace_module(model, node.name, nn.Identity())

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Clip the binary layers' weights to [-1, 1]: algorithm 1 of Courbariaux et al."""
        for module in model.modules():
            if isinstance(module, FakeQuantLayer) and isinstance(module.weight_fake_quant, ScaledSignWeight):
                # Beyond 1 sign_ste passes no gradient: weights would wander off without an effect on any sign.
                module.weight.clamp_(-1, 1)


def next_layers(graph: Graph, relu: Node) -> set[str]:
    """Names of the layers that are given what `relu` makes, as it is, pooled or reshaped."""
    found: set[str] = set()
    reached = [relu]
    while reached:
        for reader in graph.readers(reached.pop().outputs[0]):
            if isinstance(reader.target, PRUNABLE):
                found.add(reader.name)
            elif isinstance(reader.target, POOLING) or reader.target in RESHAPING:
                reached.append(reader)
    return found


class ScaledSignWeight(WeightFakeQuantize):
    """The sign of a weight times the mean magnitude of its output channel."""

    def forward(self, values: Tensor) -> Tensor:
        """Sign and scale of `values`."""
        return scaled_sign(values)

    def qparams(self, weight: Tensor) -> QParams:
        """The two levels of one bit, at plus and minus each output's mean magnitude."""
        # Codes -1 and 0 at a zero point of -1/2 stand for -scale / 2 and scale / 2.
        scale = 2 * mean_magnitude(weight.detach()).view(-1, 1)
        return QParams(1, scale, torch.full_like(scale, -0.5), *code_range(1, signed=True))


class SignInput(InputFakeQuantize):
    """The sign of an input; the deployed layer adds TIE_SHIFT steps before it takes the sign, and so does this one."""

    def forward(self, values: Tensor) -> Tensor:
        """Signs of `values`."""
        return sign_ste(values + TIE_SHIFT * STEP)

    def qparams(self) -> QParams:
        """The two levels -1 and +1."""
        return QParams(1, torch.tensor(STEP), torch.tensor(0.5), *code_range(1, signed=False))


def mean_magnitude(weight: Tensor) -> Tensor:
    """Mean |w| of each output, `(outputs, 1, …)`: XNOR-Net, eq. 6."""
    return weight.abs().mean(tuple(range(1, weight.ndim)), keepdim=True)


def scaled_sign(weight: Tensor) -> Tensor:
    """sign(w) mean|w|, whose gradient by w is that by the result times 1/n + mean|w| where |w| <= 1.

    XNOR-Net, section 3.1; n is the number of weights of an output.
    """
    # The mean is detached, for autograd would go through it: the paper gives a weight 1/n of its own gradient g, not
    # sign(w)/n of the sum of g sign(w) over its output.
    share = (weight - weight.detach()) / weight[0].numel()  # 0, with the gradient 1/n
    return mean_magnitude(weight).detach() * sign_ste(weight) + share
