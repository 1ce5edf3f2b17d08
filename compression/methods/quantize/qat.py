"""Quantization-aware training: the network adapts to the rounding that static quantization will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from compression.methods.quantize.calibration.activations import calibration_batches, observe_inputs
from compression.methods.quantize.calibration.figures import log_trained_ranges
from compression.methods.quantize.calibration.observers import OBSERVERS
from compression.methods.quantize.calibration.scheme import CalibratedQuantization
from compression.methods.quantize.calibration.selection import warn_of_float_recurrent_layers
from compression.methods.quantize.fake_quant.folded import (
    FakeQuantWeightless,
    FoldedFakeQuantLayer,
    RangeFakeQuantize,
    fake_quantize_weightless,
    fold_and_fake_quantize,
    freeze,
)
from compression.methods.quantize.graph.folding import foldable_norms, swap_pools_and_relus
from compression.methods.quantize.graph.requantize import float_input_qparams, requantize_inputs, weightless_layers
from compression.nn.graph import record_graph, replace_module
from compression.nn.layers import weight
from compression.nn.modular import modularize
from compression.nn.quantized import QParams, QuantEmbedding
from compression.params import group, param
from compression.training.hyperparameters import Training
from compression.training.loop import fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.methods.quantize.calibration.activations import ActivationStatistics
    from compression.methods.quantize.fake_quant.norms import BatchNorm
    from compression.nn.inputs import Inputs
    from compression.training.context import Context


@dataclass(frozen=True)
class Qat(CalibratedQuantization):
    """Train with weights and activations rounded where static quantization rounds them.  Jacob et al. 2018,
    arXiv:1712.05877, section 3: gradients pass the rounding (zero outside of the range), weights are rounded as they
    will be with their batch norm folded in. Weights' ranges follow the weights, activations' are moving averages,
    unless another observer is chosen: then they stay as calibrated before the training. At 4 bits and below take the
    observers `mse` for both: one outlier takes most of so few levels.
    """

    # On a ResNet-8 at W2A2, 5,000 examples: 24.4% with both defaults, 36.5 with observer=mse, 37.2 with
    # weight_observer=mse, 48.4 with both. The default of weights stays minmax, since mse tries its 36 ranges anew in
    # every forward pass.
    observer: str = param(
        "moving_average",
        "range of an activation: moving_average follows the training, the others stay as calibrated",
        choices=OBSERVERS,
        search=OBSERVERS,
    )
    weight_observer: str = param(
        "minmax",
        "range of a weight: minmax covers all of it, mse has the least squared error (slow)",
        choices=("minmax", "mse"),
    )
    calibration_samples: int = param(
        256, "training examples that calibrate the activations before the training", interval="[1, inf)"
    )
    freeze_observers: float = param(
        0.75, "share of the training after which the ranges of activations stay", interval="[0, 1]"
    )
    freeze_norm: float = param(
        0.75, "share of the training after which batch norms use the statistics they have", interval="[0, 1]"
    )
    training: Training = group(Training)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Calibrate, train with fake quantization, and convert to integers."""
        batches = calibration_batches(context, self.calibration_samples)
        model = modularize(model.to(context.device), batches[0])
        swap_pools_and_relus(model, batches[0])
        layers = self.select_layers(model, batches[0], nn.Conv2d, nn.Linear, nn.Embedding)
        warn_of_float_recurrent_layers(model, context.record)
        embeddings = {name: m for name, m in layers.items() if isinstance(m, nn.Embedding)}
        self.insert_fake_quantization(model, {n: m for n, m in layers.items() if n not in embeddings}, context, batches)

        def on_step(step: int, steps: int) -> None:
            freeze(model, observers=step >= self.freeze_observers * steps, norms=step >= self.freeze_norm * steps)

        model = fit(model, context, self.training, on_step=on_step)
        self.log_figures(model, context, batches)
        for name, module in list(model.named_modules()):
            if isinstance(module, FoldedFakeQuantLayer | FakeQuantWeightless):
                replace_module(model, name, module.convert())
        for name, embedding in embeddings.items():
            qparams = self.weight_qparams(weight(embedding), None)
            replace_module(model, name, QuantEmbedding.from_float(embedding, qparams))
        return requantize_inputs(model.to(context.device), float_input_qparams(model, batches), batches[0])

    def insert_fake_quantization(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context, batches: Sequence[Inputs]
    ) -> None:
        """Replace `layers` and `weightless_layers` by fake-quantized ones, in place; batch norms move into the layers.

        The order of replacement is that of the first forward pass.
        """
        between = weightless_layers(model)
        # Before anything is replaced: foldable_norms asks for plain layers and norms.
        graph = record_graph(model, batches[0])
        norms = foldable_norms(graph)
        for name, statistics in observe_inputs(model, {**layers, **between}, batches).items():
            module = model.get_submodule(name)
            # An average over several calls of a layer would lie between their ranges and cut the wider one.
            follows = self.observer == "moving_average" and len(graph.calls(name)) == 1
            inputs = [self.input_fake_quant(module, of_input, follows) for of_input in statistics]
            if name in between:
                replace_module(model, name, fake_quantize_weightless(between[name], inputs))
                continue
            norm_name = norms.get(name)
            norm = cast("BatchNorm", model.get_submodule(norm_name)) if norm_name else None
            layer = cast("nn.Linear | nn.Conv2d", layers[name])
            if norm_name:
                replace_module(model, norm_name, nn.Identity())
            folded = fold_and_fake_quantize(layer, norm, self.current_qparams, inputs[0])
            replace_module(model, name, folded.to(context.device))

    def input_fake_quant(self, module: nn.Module, statistics: ActivationStatistics, follows: bool) -> RangeFakeQuantize:
        """The fake quantization of an input of a layer, sum, concatenation or pooling."""
        bits = self.input_bits(module)
        low, high = self.activation_range(statistics, bits)
        return RangeFakeQuantize(bits, low, high, follows)

    def current_qparams(self, values: Tensor) -> QParams:
        """Quantization parameters of a layer's weight as it stands."""
        return self.weight_qparams(values, self.activation_bits)

    def log_figures(self, model: nn.Module, context: Context, batches: Sequence[Inputs]) -> None:
        """Record histograms of some layers' inputs and folded weights with the ranges of their codes."""
        layers = {name: m for name, m in model.named_modules() if isinstance(m, FoldedFakeQuantLayer)}
        folded = {name: m.folded_weight().detach() for name, m in layers.items()}
        weights = {name: (values, self.current_qparams(values)) for name, values in folded.items()}
        inputs = {name: m.input_fake_quant.qparams() for name, m in layers.items()}
        log_trained_ranges(context.record, model, weights, inputs, batches)
