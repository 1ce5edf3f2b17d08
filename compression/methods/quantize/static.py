"""Static quantization: weights and activations in integers, with ranges chosen from calibration data."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from compression.methods.quantize.calibration import figures
from compression.methods.quantize.calibration.activations import calibration_batches, observe_inputs
from compression.methods.quantize.calibration.observers import activation_qparams
from compression.methods.quantize.calibration.rounding import round_layer
from compression.methods.quantize.calibration.scheme import SUM_BITS, CalibratedQuantization
from compression.methods.quantize.calibration.selection import warn_of_float_recurrent_layers
from compression.methods.quantize.calibration.weights import quantize_layer
from compression.methods.quantize.graph.equalization import equalize
from compression.methods.quantize.graph.folding import fold_batch_norms, swap_pools_and_relus
from compression.methods.quantize.graph.requantize import (
    float_layers,
    quantize_weightless,
    requantize_inputs,
    weightless_layers,
)
from compression.nn.graph import replace_module
from compression.nn.layers import WEIGHTLESS, weight
from compression.nn.matrices import sum_moments
from compression.nn.modular import modularize
from compression.nn.quantized import QParams, QuantEmbedding
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.methods.quantize.calibration.activations import ActivationStatistics
    from compression.nn.inputs import Inputs
    from compression.nn.quantized import QuantConv2d, QuantLinear
    from compression.training.context import Context


@dataclass(frozen=True)
class Static(CalibratedQuantization):
    """Weights and activations in integers, with ranges chosen from calibration data.

    Jacob et al. 2018, arXiv:1712.05877; batch norms are folded into the layers before them. Calibration uses training
    examples. Eight-bit weights use the codes -64..64, whose sums are exact on every CPU.
    """

    activation_symmetric: bool = param(
        False, "spread the codes of an activation that has both signs evenly around zero"
    )
    rounding: str = param(
        "auto",
        "weights go to the nearest level, or column by column, the later ones making up for the errors (gptq); auto: "
        "gptq below 8 bits",
        choices=("auto", "nearest", "gptq"),
    )
    equalize: bool = param(False, "first equalize the ranges of neighbouring layers; Nagel et al. 2019")
    bias_correction: bool = param(False, "subtract the mean error of the weights from the bias; Nagel et al. 2019")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Rewrite the float model, calibrate, and replace its layers."""
        batches = calibration_batches(context, self.calibration_samples)
        model = modularize(model.to(context.device).eval(), batches[0], trains=False)
        # Folding first: behind it a layer's weight is what the kernel multiplies with, and no norm is left between two
        # layers that `equalize` could not pass.
        fold_batch_norms(model, batches[0])
        swap_pools_and_relus(model, batches[0])
        if self.equalize:
            equalize(model, batches[0])
        layers = self.select_layers(model, batches[0], nn.Conv2d, nn.Linear, nn.Embedding)
        warn_of_float_recurrent_layers(model, context.record)
        embeddings = {name: m for name, m in layers.items() if isinstance(m, nn.Embedding)}
        replaced = {name: m for name, m in layers.items() if name not in embeddings} | weightless_layers(model)
        # One pass for both: the inputs of layers that stay in floats are quantized, too, where integers come before
        # them.
        observed = observe_inputs(model, replaced | float_layers(model), batches)
        statistics = {name: of_inputs for name, of_inputs in observed.items() if name in replaced}
        skipped = {name: of_inputs for name, of_inputs in observed.items() if name not in replaced}
        self.log_figures(model, statistics, context)
        for name, of_inputs in statistics.items():
            replace_module(model, name, self.quantized(replaced[name], of_inputs))
        if self.rounding == "gptq" or (self.rounding == "auto" and self.bits < 8):
            self.round_in_turn(model, {name: replaced[name] for name in statistics}, statistics, batches)
        for name, embedding in embeddings.items():
            qparams = self.weight_qparams(weight(embedding), None)
            replace_module(model, name, QuantEmbedding.from_float(embedding, qparams))
        return requantize_inputs(model.to(context.device), self.float_input_qparams(skipped), batches[0])

    def activation_qparams(self, statistics: ActivationStatistics, bits: int) -> QParams:
        """Quantization parameters of an activation."""
        low, high = self.activation_range(statistics, bits)
        # What is never negative uses all codes: half of the symmetric ones would stand for nothing, and ONNX Runtime
        # could not fuse a ReLU.
        return activation_qparams(bits, low, high, self.activation_symmetric and bool(low < 0))

    def float_input_qparams(self, statistics: Mapping[str, Sequence[ActivationStatistics]]) -> dict[str, QParams]:
        """Parameters of the inputs of layers that stay in floats, by the same observer as their neighbours'."""
        return {name: self.activation_qparams(of_inputs[0], SUM_BITS) for name, of_inputs in statistics.items()}

    def quantized(self, module: nn.Module, statistics: Sequence[ActivationStatistics]) -> nn.Module:
        """The integer form of a layer, sum, concatenation or pooling with these statistics of its inputs."""
        inputs = [self.activation_qparams(of_input, self.input_bits(module)) for of_input in statistics]
        if isinstance(module, WEIGHTLESS):
            return quantize_weightless(module, inputs)
        layer = cast("nn.Linear | nn.Conv2d", module)
        qparams = self.weight_qparams(weight(layer), self.activation_bits)
        return self._corrected(
            layer, quantize_layer(layer, qparams, inputs[0]), qparams, inputs[0], statistics[0].means
        )

    def round_in_turn(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        statistics: Mapping[str, Sequence[ActivationStatistics]],
        batches: Sequence[Inputs],
    ) -> None:
        """Round the weights of `layers`, the float ones by name, by GPTQ, each on what the integer `model` gives it."""
        for name, module in layers.items():
            if isinstance(module, WEIGHTLESS):
                continue
            layer, integer = cast("nn.Linear | nn.Conv2d", module), cast("QuantLinear", model.get_submodule(name))
            moments = sum_moments(model, integer, layer, batches, functools.partial(_product, integer.input))
            if moments is None:
                continue
            qparams = self.weight_qparams(weight(layer), self.activation_bits)
            # As it was raised for a bias that would not fit else.
            qparams = replace(qparams, scale=integer.scale)
            codes = round_layer(layer, qparams, moments, name)
            source = self.activation_qparams(statistics[name][0], self.input_bits(module))
            made = quantize_layer(layer, qparams, source, codes)
            replace_module(model, name, self._corrected(layer, made, qparams, source, statistics[name][0].means, codes))

    def _corrected(
        self,
        layer: nn.Linear | nn.Conv2d,
        integer: QuantLinear | QuantConv2d,
        qparams: QParams,
        source: QParams,
        means: Tensor,
        codes: Tensor | None = None,
    ) -> nn.Module:
        """`integer`, or with bias correction the layer with the mean error of its weights taken off its bias."""
        if not self.bias_correction:
            return integer
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        error = mean_output_error(integer.weight - weight(layer), means, groups)
        corrected = copy.copy(layer)
        bias = layer.bias.detach() if layer.bias is not None else 0.0
        corrected._parameters = {**layer._parameters, "bias": nn.Parameter(bias - error, requires_grad=False)}
        # Quantized again: the corrected bias has to be rounded to the kernel's steps as well.
        return quantize_layer(corrected, qparams, source, codes)

    def log_figures(
        self, model: nn.Module, statistics: Mapping[str, Sequence[ActivationStatistics]], context: Context
    ) -> None:
        """Record histograms of some activations and weights with their ranges."""
        self.log_input_histograms(model, statistics, context)
        weighted = [name for name in statistics if hasattr(model.get_submodule(name), "weight")]
        self.log_weight_histograms(model, weighted, self.activation_bits, context.record)

    def log_input_histograms(
        self, model: nn.Module, statistics: Mapping[str, Sequence[ActivationStatistics]], context: Context
    ) -> None:
        """Record histograms of the first inputs of some layers with their ranges."""
        shown = {name: statistics[name][0] for name in figures.evenly_spaced(list(statistics))}
        bits = {name: self.input_bits(model.get_submodule(name)) for name in shown}
        ranges = {name: self.activation_range(of_input, bits[name]) for name, of_input in shown.items()}
        figures.log_activation_histograms(context.record, shown, ranges)


def _product(quantize: nn.Module, rows: Tensor) -> Tensor:
    """X^T X of inputs `(groups, n, columns)` that a layer quantizes: `(groups, columns, columns)`, in doubles."""
    given: Tensor = quantize(rows)
    return (given.mT @ given).double()


def mean_output_error(error: Tensor, means: Tensor, groups: int = 1) -> Tensor:
    """What the `error` `(outputs, inputs, …)` of a weight adds to the outputs on average, `(outputs,)`.

    `means` are those of the layer's inputs, `(channels,)`, for a convolution in `groups`. Nagel et al. 2019,
    arXiv:1906.04721, eq. 17.
    """
    # The mean of an input is taken to be the same at every place of the kernel, which is not so at padded borders.
    kernels = error.flatten(2).sum(2) if error.ndim > 2 else error
    grouped = kernels.view(groups, -1, kernels.shape[1])  # (groups, outputs / groups, inputs / groups)
    return torch.einsum("goi,gi->go", grouped, means.to(error).view(groups, -1)).flatten()
