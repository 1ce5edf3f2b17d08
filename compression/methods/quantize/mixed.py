"""Mixed precision: each layer gets the width that it needs, within a budget of bytes or of time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.quantize.calibration.activations import batches, observe
from compression.methods.quantize.calibration.observers import Observed
from compression.methods.quantize.calibration.selection import SKIP, tell_recurrent
from compression.methods.quantize.static import Static
from compression.methods.quantize.widths.knapsack import Option, assign
from compression.methods.quantize.widths.sensitivity import fisher, judged, replaced, rounded
from compression.methods.quantize.widths.timed import fewest, share_of_time
from compression.methods.quantize.wiring.between import floats, round_inputs
from compression.methods.quantize.wiring.folding import fold_batch_norms, relu_before_pool
from compression.nn.inputs import Inputs
from compression.nn.layers import Add, count_macs, weight
from compression.nn.quantized import QParams, QuantEmbedding
from compression.nn.quantized.packing import packed_size
from compression.params import param
from compression.reporting.figures.quantize import bit_widths
from compression.training.context import Context

FLOATS = 32  # the width of a layer that stays as it is
Sensitivity = dict[tuple[str, int], dict[str, float]]  # layer and width -> loss, quality and Fisher cost


@dataclass(frozen=True)
class Mixed(Method):
    """Give each layer one of several widths, so that all together keep to a budget and lose the least.

    Each layer is tried alone at each width, which gives the rise of the validation loss, and a cheap proxy that
    needs only gradients: the rounding error weighted by the Fisher information, as in Dong et al. 2020,
    arXiv:1911.03852, with the empirical Fisher for the Hessian. Ranges are chosen as in static.

    Within a budget of bytes the sums of these are minimised exactly, by dynamic programming (a multiple-choice
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
    calibration_samples: int = param(512, "training examples to see activations and gradients of", interval="[1, inf)")
    skip: tuple[str, ...] = param((), SKIP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [bits for bits in self.widths if bits > 8 and bits != FLOATS]:
            raise UserError(f"widths has {unknown[0]}; it takes bits from 1 to 8, or 32, with / between them: 2/4/8.")
        if all(bits == FLOATS for bits in self.widths):
            raise UserError("widths leaves every layer in floats; name a width from 1 to 8 as well.")

    def inactive(self) -> frozenset[str]:
        return super().inactive() | ({"budget"} if self.latency else set())

    @property
    def tried(self) -> list[int]:
        """The widths, ascending, that a layer may get."""
        widths = sorted(set(self.widths))
        return [max(b for b in widths if b < FLOATS), FLOATS] if self.latency else widths

    def at(self, bits: int) -> Static:
        """Static quantization with this width."""
        return Static(
            bits=bits,
            activation_bits=self.activation_bits,
            calibration_samples=self.calibration_samples,
            skip=self.skip,
        )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device).eval()
        fold_batch_norms(model)
        relu_before_pool(model)
        layers = self.at(8).layers(model, nn.Conv2d, nn.Linear, nn.Embedding)
        tell_recurrent(model, context.record)
        found = self.sensitivity(model, layers, context)
        data = batches(context, self.calibration_samples)
        seen = self.observed(model, layers, data, context)

        def at_widths(chosen: dict[str, int]) -> nn.Module:
            made = self.converted(copy.deepcopy(model), chosen, seen).to(context.device)
            return round_inputs(made, self.at(8).left(seen), data[0])

        chosen = (
            self.within_time(model, layers, found, at_widths, context) if self.latency else self.within(layers, found)
        )
        context.record.table("widths", table(layers, found, chosen, self.size))
        costs = {(name, bits): losses[self.by] for (name, bits), losses in found.items() if bits != FLOATS}
        title = "Rise of the loss, alone" if self.by == "loss" else "Fisher-weighted error, alone"
        context.record.figure("widths", bit_widths(costs, chosen, title))
        return at_widths(chosen)

    def numbers(self, layer: nn.Module, bits: int) -> QParams:
        """What the weight of a layer is rounded to at a width."""
        return self.at(bits).weight_numbers(layer, None if isinstance(layer, nn.Embedding) else self.activation_bits)

    def size(self, layer: nn.Module, bits: int) -> int:
        """Bytes of a layer's weight at a width, scales included."""
        count = weight(layer).numel()
        return 4 * count if bits == FLOATS else packed_size(count, bits) + 4 * self.numbers(layer, bits).scale.numel()

    def sensitivity(self, model: nn.Module, layers: dict[str, nn.Module], context: Context) -> Sensitivity:
        """What each layer alone at each width does."""
        validation = context.task.validation
        order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(context.seed))
        some = validation.take(order[: self.examples]).to(context.device)
        information = fisher(model, layers, context, self.calibration_samples)
        start = judged(model, some, context.task)
        found: Sensitivity = {}
        for name, layer in layers.items():
            for bits in self.tried:
                if bits == FLOATS:
                    found[name, bits] = {"loss": 0.0, "quality": 0.0, "fisher": 0.0}
                    continue
                values = rounded(weight(layer), self.numbers(layer, bits))
                proxy = (information[name] * (values - weight(layer)).square()).sum().item() / 2
                with replaced(layer, values):
                    now = judged(model, some, context.task)
                found[name, bits] = {
                    "loss": now["loss"] - start["loss"],
                    "quality": now["quality"] - start["quality"],
                    "fisher": proxy,
                }
        return found

    def within(self, layers: dict[str, nn.Module], found: Sensitivity) -> dict[str, int]:
        """The widths that keep to the budget of bytes; a loss that falls by chance counts as one that stays."""
        options: dict[str, list[Option]] = {name: [] for name in layers}
        for (name, bits), costs in found.items():
            options[name].append(Option(bits, self.size(layers[name], bits), max(0.0, costs[self.by])))
        budget = int(self.budget * sum(4 * weight(m).numel() for m in layers.values()))
        return {name: option.bits for name, option in assign(options, budget).items()}

    def within_time(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        found: Sensitivity,
        at_widths: Callable[[dict[str, int]], nn.Module],
        context: Context,
    ) -> dict[str, int]:
        """The widths that keep to the share of time, with integers in as few layers as need be."""
        assert self.latency is not None
        widest, example = self.tried[0], context.task.example(2)
        costs = count_macs(model, example)
        order = sorted(layers, key=lambda n: max(0.0, found[n, widest][self.by]) / max(costs.get(n, 0), 1))
        rows = []

        def widths(count: int) -> dict[str, int]:
            return {name: widest if name in order[:count] else FLOATS for name in layers}

        def share(count: int) -> float:
            taken = share_of_time(at_widths(widths(count)), model, example)
            rows.append({"layers in integers": count, "share of time": taken})
            return taken

        count = fewest(len(order), self.latency, share)
        context.record.table("latency", rows)
        return widths(count)

    def observed(
        self, model: nn.Module, layers: dict[str, nn.Module], data: list[Inputs], context: Context
    ) -> dict[str, list[Observed]]:
        """What goes into layers, sums and poolings."""
        between = {name: m for name, m in model.named_modules() if type(m) in (Add, nn.AdaptiveAvgPool2d)}
        seen = observe(model, floats(model) | between, data)
        self.at(8).draw_inputs(model, {name: held for name, held in seen.items() if name in layers | between}, context)
        return seen

    def converted(self, model: nn.Module, chosen: dict[str, int], seen: dict[str, list[Observed]]) -> nn.Module:
        """The model with its layers at the chosen widths, in place."""
        for name, held in seen.items():
            layer = model.get_submodule(name)
            width = chosen.get(name, FLOATS if hasattr(layer, "weight") else 8)  # sums and poolings have 8 bits
            if width != FLOATS:
                model.set_submodule(name, self.at(width).replaced(layer, held))
        for name, bits in chosen.items():
            lookup = model.get_submodule(name)
            if isinstance(lookup, nn.Embedding) and bits != FLOATS:
                model.set_submodule(name, QuantEmbedding.from_float(lookup, self.numbers(lookup, bits)))
        return model


def table(
    layers: dict[str, nn.Module],
    found: Sensitivity,
    chosen: dict[str, int],
    size: Callable[[nn.Module, int], int],
) -> list[dict[str, Any]]:
    """A row a layer: the width it got, its bytes, and what each width would cost."""
    rows: dict[str, dict[str, Any]] = {
        name: {"layer": name, "bits": bits, "bytes": size(layers[name], bits)} for name, bits in chosen.items()
    }
    for (name, bits), costs in found.items():
        rows[name] |= {f"{what}_{bits}": value for what, value in costs.items()}
    return list(rows.values())
