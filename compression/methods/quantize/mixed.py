"""Mixed precision: each layer gets the bit width that it needs, within a budget of bytes or of time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.quantize.bit_allocation.knapsack import Option, allocate_bits
from compression.methods.quantize.bit_allocation.latency import fewest_layers, relative_latency
from compression.methods.quantize.bit_allocation.sensitivity import (
    loss_and_quality,
    temporary_weight,
    weight_fisher,
)
from compression.methods.quantize.calibration.activations import calibration_batches, observe_inputs
from compression.methods.quantize.calibration.selection import SKIP_HELP, warn_of_float_recurrent_layers
from compression.methods.quantize.calibration.weights import quantize_dequantize
from compression.methods.quantize.graph.folding import fold_batch_norms, swap_pools_and_relus
from compression.methods.quantize.graph.requantize import float_layers, requantize_inputs, weightless_layers
from compression.methods.quantize.static import Static
from compression.nn.graph import replace_module
from compression.nn.layers import count_macs, tied_clause, tied_layers, weight
from compression.nn.modular import modularize
from compression.nn.quantized import QParams, QuantEmbedding
from compression.nn.quantized.packing import packed_size
from compression.params import param
from compression.reporting.figures.quantize import bit_widths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from compression.methods.quantize.calibration.activations import ActivationStatistics
    from compression.nn.inputs import Inputs
    from compression.training.context import Context

FLOAT_BITS = 32  # the width of a layer that stays in floats
Sensitivities = dict[tuple[str, int], dict[str, float]]  # (layer, bits) -> changes of loss and quality, Fisher cost
Statistics = dict[str, list["ActivationStatistics"]]  # layer -> statistics of its inputs


@dataclass(frozen=True)
class Mixed(Method):
    """Give each layer one of several bit widths, so that all together keep to a budget and lose the least.

    Each layer is quantized alone at each width, which gives the rise of the validation loss, and a cheap proxy that
    needs only gradients: the rounding error weighted by the Fisher information, as in Dong et al. 2020,
    arXiv:1911.03852, with the empirical Fisher for the Hessian. Ranges are chosen as in static.

    Within a budget of bytes the sum of these costs is minimised exactly, by dynamic programming (a multiple-choice
    knapsack). Within one of time the choice is greedy: integer kernels multiply bytes whatever their codes' width, so a
    layer gets the widest integers or stays in floats, and those that lose least for each multiply-accumulate become
    integers first, until the deployed file, timed, is fast enough.
    """

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    widths: tuple[int, ...] = param(
        (2, 4, 8), "bits that a layer may get, 1 to 8, or 32 to stay in floats", interval="[1, 32]"
    )
    budget: float = param(
        0.15,
        "bytes of the weights, scales included, as a share of those in 32 bits",
        interval="(0, 1]",
        search=(0.08, 0.25),
    )
    latency: float | None = param(
        None, "in place of budget: time of one example, as a share of what the floats take", interval="(0, 1)"
    )
    by: str = param("loss", "what is minimised: measured rise of the loss, or the proxy", choices=("loss", "fisher"))
    activation_bits: int = param(8, "bits of an activation", interval="[1, 8]", search=(4, 8))
    examples: int = param(1000, "validation examples to try the widths on", interval="[1, inf)")
    calibration_samples: int = param(
        512, "training examples that calibrate the activations and give gradients", interval="[1, inf)"
    )
    skip: tuple[str, ...] = param((), SKIP_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [bits for bits in self.widths if bits > 8 and bits != FLOAT_BITS]:
            raise UserError(f"widths has {unknown[0]}; it takes bits from 1 to 8, or 32, with / between them: 2/4/8.")
        if all(bits == FLOAT_BITS for bits in self.widths):
            raise UserError("widths leaves every layer in floats; name a width from 1 to 8 as well.")

    def inactive(self) -> frozenset[str]:
        """`budget` is inactive where a latency is given."""
        return super().inactive() | ({"budget"} if self.latency else set())

    @property
    def candidates(self) -> list[int]:
        """The widths, ascending, that a layer may get."""
        widths = sorted(set(self.widths))
        return [max(b for b in widths if b < FLOAT_BITS), FLOAT_BITS] if self.latency else widths

    def static(self, bits: int) -> Static:
        """Static quantization with `bits` bits for every weight."""
        return Static(
            bits=bits,
            activation_bits=self.activation_bits,
            calibration_samples=self.calibration_samples,
            skip=self.skip,
        )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Measure the sensitivities, choose the widths, and quantize."""
        batches = calibration_batches(context, self.calibration_samples)
        model = modularize(model.to(context.device).eval(), batches[0], trains=False)
        fold_batch_norms(model, batches[0])
        swap_pools_and_relus(model, batches[0])
        layers = self.static(8).select_layers(model, batches[0], nn.Conv2d, nn.Linear, nn.Embedding)
        # Two widths for one weight would store it twice: the ties of embeddings stay in floats.
        tied = tied_layers(model)
        tied_names = {*tied, *tied.values()}
        layers = {name: layer for name, layer in layers.items() if name not in tied_names}
        if not layers:
            raise UserError(f"There is nothing to quantize{tied_clause(tied_names)}.")
        warn_of_float_recurrent_layers(model, context.record)
        sensitivities = self.measure_sensitivities(model, layers, context)
        statistics = self.observe(model, layers, batches, context)

        def quantized(widths: dict[str, int]) -> nn.Module:
            # On a copy: the search within a latency converts, exports and times about log2(layers) choices of widths.
            converted = self.convert(copy.deepcopy(model), widths, statistics).to(context.device)
            return requantize_inputs(converted, self.static(8).float_input_qparams(statistics), batches[0])

        if self.latency:
            widths = self.widths_within_latency(model, layers, sensitivities, quantized, context)
        else:
            widths = self.widths_within_budget(layers, sensitivities)
        self.log_widths(layers, sensitivities, widths, context)
        return quantized(widths)

    def weight_qparams(self, layer: nn.Module, bits: int) -> QParams:
        """Quantization parameters of a layer's weight with `bits` bits."""
        activation_bits = None if isinstance(layer, nn.Embedding) else self.activation_bits
        return self.static(bits).weight_qparams(weight(layer), activation_bits)

    def size(self, layer: nn.Module, bits: int) -> int:
        """Bytes of a layer's weight with `bits` bits, scales included."""
        count = weight(layer).numel()
        if bits == FLOAT_BITS:
            return 4 * count
        # `static` weights are symmetric: a scale of 4 bytes per channel, and no zero points.
        return packed_size(count, bits) + 4 * self.weight_qparams(layer, bits).scale.numel()

    def measure_sensitivities(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> Sensitivities:
        """What each candidate width costs each layer, with all the others in floats."""
        validation = context.task.validation
        order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(context.seed))
        examples = validation.select(order[: self.examples]).to(context.device)
        information = weight_fisher(model, layers, context, self.calibration_samples)
        in_floats = loss_and_quality(model, examples, context.task)
        costs: Sensitivities = {}
        for name, layer in layers.items():
            for bits in self.candidates:
                if bits == FLOAT_BITS:
                    costs[name, bits] = {"loss": 0.0, "quality": 0.0, "fisher": 0.0}
                    continue
                values = quantize_dequantize(weight(layer), self.weight_qparams(layer, bits))
                # Half of the sum of F (dw)^2: the second-order term of the loss, with the Fisher diagonal for the
                # Hessian.
                fisher = (information[name] * (values - weight(layer)).square()).sum().item() / 2
                with temporary_weight(layer, values):
                    rounded = loss_and_quality(model, examples, context.task)
                changes = {what: rounded[what] - in_floats[what] for what in ("loss", "quality")}
                costs[name, bits] = {**changes, "fisher": fisher}
        return costs

    def widths_within_budget(self, layers: Mapping[str, nn.Module], sensitivities: Sensitivities) -> dict[str, int]:
        """The widths that keep to the budget of bytes at the least cost.

        A loss that falls, which is chance, costs as much as one that stays. Raises UserError if nothing fits.
        """
        options: dict[str, list[Option]] = {name: [] for name in layers}
        for (name, bits), costs in sensitivities.items():
            options[name].append(Option(bits, self.size(layers[name], bits), max(0.0, costs[self.by])))
        budget = int(self.budget * sum(4 * weight(m).numel() for m in layers.values()))
        return {name: option.bits for name, option in allocate_bits(options, budget).items()}

    def widths_within_latency(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        sensitivities: Sensitivities,
        quantized: Callable[[dict[str, int]], nn.Module],
        context: Context,
    ) -> dict[str, int]:
        """The widths that keep to the share of time, with integers in as few layers as possible.

        `quantized` gives the model with widths. Raises UserError if not even integers in all layers are fast enough.
        """
        assert self.latency is not None
        widest, example = self.candidates[0], context.task.example(2)
        operations = count_macs(model, example)
        # An embedding multiplies nothing: divided by 1, it becomes integers last, unless that costs nothing at all.
        by_cost = sorted(
            layers, key=lambda n: max(0.0, sensitivities[n, widest][self.by]) / max(operations.get(n, 0), 1)
        )
        rows = []

        def widths(count: int) -> dict[str, int]:
            return {name: widest if name in by_cost[:count] else FLOAT_BITS for name in layers}

        def latency_of(count: int) -> float:
            share = relative_latency(quantized(widths(count)), model, example)
            rows.append({"layers in integers": count, "share of time": share})
            return share

        count = fewest_layers(len(by_cost), self.latency, latency_of)
        context.record.table("latency", rows)
        return widths(count)

    def observe(
        self, model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Inputs], context: Context
    ) -> Statistics:
        """Observe the inputs of layers and `weightless_layers`, and record histograms of some of them."""
        between = weightless_layers(model)
        # Also of the layers that stay in floats: behind integers, their inputs are quantized as well.
        statistics = observe_inputs(model, float_layers(model) | between, batches)
        shown = {n: of_inputs for n, of_inputs in statistics.items() if n in layers or n in between}
        self.static(8).log_input_histograms(model, shown, context)
        return statistics

    def convert(self, model: nn.Module, widths: Mapping[str, int], statistics: Statistics) -> nn.Module:
        """Quantize the layers of `model` with `widths`, and `weightless_layers` with 8 bits, in place."""
        for name, of_inputs in statistics.items():
            module = model.get_submodule(name)
            bits = widths.get(name, FLOAT_BITS if hasattr(module, "weight") else 8)
            if bits != FLOAT_BITS:
                replace_module(model, name, self.static(bits).quantized(module, of_inputs))
        for name, bits in widths.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.Embedding) and bits != FLOAT_BITS:
                replace_module(model, name, QuantEmbedding.from_float(module, self.weight_qparams(module, bits)))
        return model

    def log_widths(
        self,
        layers: Mapping[str, nn.Module],
        sensitivities: Sensitivities,
        widths: Mapping[str, int],
        context: Context,
    ) -> None:
        """Record the widths, with a table of what each would have cost each layer and a figure."""
        rows: dict[str, dict[str, Any]] = {
            name: {"layer": name, "bits": bits, "bytes": self.size(layers[name], bits)} for name, bits in widths.items()
        }
        for (name, bits), costs in sensitivities.items():
            rows[name] |= {f"{what}_{bits}": value for what, value in costs.items()}
        context.record.table("widths", list(rows.values()))
        shown = {key: costs[self.by] for key, costs in sensitivities.items() if key[1] != FLOAT_BITS}
        title = "Rise of the loss, alone" if self.by == "loss" else "Fisher-weighted error, alone"
        context.record.figure("widths", bit_widths(shown, widths, title))
