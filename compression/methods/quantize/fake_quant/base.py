"""What the fake-quantization trainings lsq, dorefa and bnn share.

Linear layers and convolutions become `FakeQuantLinear` and `FakeQuantConv2d`, whose gradients are those of the paper;
these are trained, and converted to the layers of integers that all methods have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from torch import nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.quantize.calibration.activations import calibration_batches, observe_inputs
from compression.methods.quantize.calibration.figures import log_trained_ranges
from compression.methods.quantize.calibration.selection import (
    SKIP_HELP,
    is_quantizable,
    select_layers,
    warn_of_float_recurrent_layers,
)
from compression.methods.quantize.fake_quant.layers import (
    FakeQuantLayer,
    InputFakeQuantize,
    WeightFakeQuantize,
    convert,
    fake_quantized,
    is_foldable,
)
from compression.methods.quantize.fake_quant.learned_step import LearnedStepInput, learned_steps
from compression.methods.quantize.graph.folding import foldable_norms, swap_pools_and_relus
from compression.methods.quantize.graph.requantize import quantize_residuals
from compression.nn.graph import Graph, record_graph, replace_module
from compression.nn.layers import PRUNABLE
from compression.nn.modular import modularize
from compression.params import group, param
from compression.training.hyperparameters import Training
from compression.training.loop import fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.methods.quantize.fake_quant.norms import BatchNorm
    from compression.nn.inputs import Inputs
    from compression.training.context import Context

SAMPLES = 512  # training examples that calibrate sums and poolings after the training


@dataclass(frozen=True)
class FakeQuantTraining(Method):
    """Training with every linear layer and convolution fake-quantized; the first and the last with more bits."""

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    edge_bits: int = param(
        8, "bits of the first and the last layer and their inputs, as in lsq; 0 keeps floats", interval="[0, 8]"
    )
    skip: tuple[str, ...] = param((), SKIP_HELP)
    training: Training = group(Training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edge_bits == 1:
            raise UserError("edge_bits=1 is too few for learned steps; it takes 2 to 8, or 0 for floats.")

    def fake_quantizers(self, layer: nn.Linear | nn.Conv2d) -> tuple[WeightFakeQuantize, nn.Module]:
        """The fake quantization of the weight and the input of a layer that is neither the first nor the last."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, graph: Graph, inner: Mapping[str, nn.Module]) -> None:
        """Change what else has to be changed before training; `inner` are the layers between first and last."""

    def after_step(self, model: nn.Module) -> None:
        """Do what has to be done to the model after an optimizer step."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train with fake quantization and convert to integers."""
        inputs = next(context.task.train.to(context.device).batches(256))[0]
        model = modularize(model.to(context.device), inputs)
        swap_pools_and_relus(model, inputs)
        graph = record_graph(model, inputs)
        warn_of_float_recurrent_layers(model, context.record)
        self.insert_fake_quantization(model, graph, inputs)
        model = fit(model, context, self.training, on_step=lambda *_: self.after_step(model))
        batches = calibration_batches(context, SAMPLES)
        log_figures(model, context, batches)
        # Norms by the graph of before the training: foldable_norms asks for plain layers, which fake-quantized ones are
        # not. Sums come last, for without integers in these ONNX Runtime computes the convolutions in floats: a
        # ResNet-8 ran at 0.55 of the floats' speed, with them at 1.1 to 1.4.
        return quantize_residuals(convert_layers(model, foldable_norms(graph)), batches)

    def insert_fake_quantization(self, model: nn.Module, graph: Graph, inputs: Inputs) -> None:
        """Replace the layers that are not skipped by fake-quantized ones, in place.

        Learned steps of a layer's inputs start from what it is given in all its calls on the prepared batch `inputs`.
        """
        called = [node.name for node in graph.nodes if isinstance(node.target, PRUNABLE)]
        found = [name for name in dict.fromkeys(called) if is_quantizable(model.get_submodule(name))]
        selected = select_layers(model, found, self.skip, inputs)
        # The first and the last that run, whatever the order in which they are registered.
        edges = {called[0], called[-1]}
        inner = {name: model.get_submodule(name) for name in selected if name not in edges}
        # Before observing: it changes what layers are given.
        self.prepare(model, graph, inner)
        observed = observe_inputs(model, {name: model.get_submodule(name) for name in selected}, [inputs])
        for name in selected:
            layer = cast("nn.Linear | nn.Conv2d", model.get_submodule(name))
            if name not in inner and not self.edge_bits:
                continue
            is_inner = name in inner
            quantizers = (
                self.fake_quantizers(layer) if is_inner else learned_steps(layer, self.edge_bits, self.edge_bits)
            )
            if isinstance(quantizers[1], LearnedStepInput):
                quantizers[1].initialize(observed[name][0].sample)
            replace_module(model, name, fake_quantized(layer, *quantizers))


def log_figures(model: nn.Module, context: Context, batches: Sequence[Inputs]) -> None:
    """Record histograms of some layers' weights and inputs, with the ranges that were trained."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantLayer)}
    weights = {
        name: (m.weight_fake_quant.transform(m.weight), m.weight_fake_quant.qparams(m.weight))
        for name, m in layers.items()
    }
    quantizers = {name: m.input_fake_quant for name, m in layers.items()}
    inputs = {name: m.qparams() for name, m in quantizers.items() if isinstance(m, InputFakeQuantize)}
    log_trained_ranges(context.record, model, weights, inputs, batches)


def convert_layers(model: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    """Convert every fake-quantized layer to integers, in place, and fold the batch norms into them where possible.

    `norms` are the names of the batch norms that `foldable_norms` found, by their layers.
    """
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, FakeQuantLayer):
            continue
        norm_name = norms.get(name)
        norm = cast("BatchNorm", model.get_submodule(norm_name)) if norm_name else None
        if norm_name and norm is not None and is_foldable(layer, norm):
            replace_module(model, name, convert(layer, norm))
            replace_module(model, norm_name, nn.Identity())
        else:
            replace_module(model, name, convert(layer))
    return model
