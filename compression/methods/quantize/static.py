"""Static quantization: weights and activations in integers, ranges chosen from calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compression.methods.quantize.calibration import pictures
from compression.methods.quantize.calibration.activations import batches, observe
from compression.methods.quantize.calibration.observers import Observed
from compression.methods.quantize.calibration.scheme import SUM_BITS, Calibrated
from compression.methods.quantize.calibration.selection import tell_recurrent
from compression.methods.quantize.wiring.between import floats, round_inputs
from compression.methods.quantize.wiring.folding import equalize, fold_batch_norms, relu_before_pool
from compression.nn.layers import Add
from compression.nn.quantized import (
    QParams,
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    QuantLinear,
    QuantWeightLayer,
    calc_qparams,
    code_range,
)
from compression.params import param
from compression.reporting.figures.quantize import histograms
from compression.training.context import Context


@dataclass(frozen=True)
class Static(Calibrated):
    """Weights and activations in integers, with ranges chosen from calibration data.

    Jacob et al. 2018, arXiv:1712.05877; batch norms are folded into the layers before them. Calibration looks at
    training examples. Eight-bit weights use the codes -64..64, so that no CPU adds them up wrongly.
    """

    activation_symmetric: bool = param(
        False, "spread the codes of an activation that has both signs evenly around zero"
    )
    equalize: bool = param(False, "first equalise the ranges of neighbouring layers; Nagel et al. 2019")
    bias_correction: bool = param(False, "take the mean error of the weights out of the bias; Nagel et al. 2019")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device).eval()
        fold_batch_norms(model)
        relu_before_pool(model)
        if self.equalize:
            equalize(model)
        layers = self.layers(model, nn.Conv2d, nn.Linear, nn.Embedding)
        tell_recurrent(model, context.record)
        tables = {name: m for name, m in layers.items() if isinstance(m, nn.Embedding)}
        others = {name: m for name, m in model.named_modules() if type(m) in (Add, nn.AdaptiveAvgPool2d)}
        watched = {name: m for name, m in layers.items() if name not in tables} | others
        data = batches(context, self.calibration_samples)
        every = observe(model, watched | floats(model), data)
        seen = {name: held for name, held in every.items() if name in watched}
        left = self.left({name: held for name, held in every.items() if name not in watched})
        self.draw(model, seen, context)
        for name, held in seen.items():
            model.set_submodule(name, self.replaced(model.get_submodule(name), held))
        for name, table in tables.items():
            model.set_submodule(name, QuantEmbedding.from_float(table, self.weight_numbers(table, None)))
        return round_inputs(model.to(context.device), left, data[0])

    def activation(self, observed: Observed, bits: int) -> QParams:
        """The numbers of an activation."""
        codes, (low, high) = code_range(bits, signed=False), self.bounds(observed, bits)
        # What is never negative gets all codes: half of them would stand for nothing, and keep a ReLU from fusing.
        scale, zero_point = calc_qparams(low, high, *codes, self.activation_symmetric and bool(low < 0))
        return QParams(bits, scale, zero_point, *codes)

    def left(self, seen: dict[str, list[Observed]]) -> dict[str, QParams]:
        """The numbers of what goes into each layer, should it stay in floats; the same range as its neighbours'."""
        return {name: self.activation(held[0], SUM_BITS) for name, held in seen.items()}

    def replaced(self, layer: Any, held: list[Observed]) -> nn.Module:
        """The quantized form of a layer, sum or pooling that was given what `held` says."""
        inputs = [self.activation(observed, self.input_bits(layer)) for observed in held]
        if isinstance(layer, Add):
            return QuantAdd.from_qparams(*inputs)
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            return QuantAvgPool2d.from_float(layer, inputs[0])
        numbers = self.weight_numbers(layer, self.activation_bits)
        made = quantized(layer, numbers, inputs[0])
        if not self.bias_correction:
            return made
        error = mean_error(made.weight - layer.weight.detach(), held[0].means, getattr(layer, "groups", 1))
        bias = layer.bias.detach() if layer.bias is not None else 0.0
        layer.bias = nn.Parameter(bias - error, requires_grad=False)
        return quantized(layer, numbers, inputs[0])

    def draw(self, model: nn.Module, seen: dict[str, list[Observed]], context: Context) -> None:
        """Pictures of some activations and weights with their ranges."""
        self.draw_inputs(model, seen, context)
        weighted = [name for name in seen if hasattr(model.get_submodule(name), "weight")]
        self.draw_weights(model, weighted, self.activation_bits, context.record)

    def draw_inputs(self, model: nn.Module, seen: dict[str, list[Observed]], context: Context) -> None:
        """A picture of some activations with their ranges."""
        first = {name: held[0] for name, held in seen.items()}
        shown = pictures.spread(list(first))
        values = {name: first[name].sample.numpy() for name in shown}
        ranges: dict[str, tuple[float, float]] = {}
        for name in shown:
            low, high = self.bounds(first[name], self.input_bits(model.get_submodule(name)))
            ranges[name] = (float(low), float(high))
        context.record.figure("activation-ranges", histograms(values, ranges, "activation"))


def quantized(layer: nn.Module, weight: QParams, activation: QParams) -> QuantWeightLayer:
    """The integer form of a convolution or linear layer."""
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d.from_float(layer, weight, activation)
    assert isinstance(layer, nn.Linear)
    return QuantLinear.from_float(layer, weight, activation)


def mean_error(error: Tensor, means: Tensor, groups: int = 1) -> Tensor:
    """What the error of a weight adds to a layer's outputs on average, `(outputs,)`, from its inputs' means.

    Nagel et al. 2019, arXiv:1906.04721, eq. 17.
    """
    kernels = error.flatten(2).sum(2) if error.ndim > 2 else error
    grouped = kernels.unflatten(0, (groups, -1))
    return torch.einsum("goi,gi->go", grouped, means.to(error).view(groups, -1)).flatten()
