"""What all post-training methods are told of weights, and which layers they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compression.methods.base import Method
from compression.methods.quantize.calibration import observers, pictures
from compression.methods.quantize.calibration.observers import OBSERVERS, Observed
from compression.methods.quantize.calibration.selection import SKIP, chosen
from compression.methods.quantize.calibration.weights import weight_numbers
from compression.nn.layers import Add, weight
from compression.nn.quantized import QParams
from compression.params import param
from compression.reporting.figures.quantize import histograms
from compression.training.context import RunLogger

SUM_BITS = 8  # of what residual sums and mean poolings take: fewer would store nothing smaller, and lose the most


@dataclass(frozen=True)
class Scheme(Method):
    """How weights become integers, and which layers stay as they are."""

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    bits: int = param(8, "bits of a weight", interval="[1, 8]", search=(2, 8))
    granularity: str = param(
        "channel", "weights that share a scale", choices=("tensor", "channel", "group"), search=("tensor", "channel")
    )
    group_size: int = param(
        32, "weights to a group, along the inputs", interval="[2, inf)", when={"granularity": ("group",)}
    )
    symmetric: bool = param(True, "spread a weight's codes evenly around zero")
    weight_observer: str = param(
        "mse", "range of a weight: all of it, or that of the least squared error", choices=("minmax", "mse")
    )
    skip: tuple[str, ...] = param((), SKIP)

    def weight_numbers(self, layer: nn.Module, activation_bits: int | None) -> QParams:
        """The numbers of a layer's weight beside activations of so many bits (None: not quantized)."""
        return weight_numbers(
            weight(layer),
            self.bits,
            self.granularity,
            self.group_size,
            self.symmetric,
            activation_bits,
            self.weight_observer,
        )

    def draw_weights(self, model: nn.Module, names: list[str], activation_bits: int | None, record: RunLogger) -> None:
        """Log histograms of some of the weights in steps of their scales, with the range of the codes."""
        values, codes = {}, {}
        for name in pictures.spread(names):
            layer = model.get_submodule(name)
            numbers = self.weight_numbers(layer, activation_bits)
            values[name] = pictures.in_steps(weight(layer), numbers)
            codes[name] = (numbers.low, numbers.high)
        record.figure("weight-ranges", histograms(values, codes, "weight in steps"))

    def layers(self, model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
        """The layers of exactly these kinds by name, without the skipped ones; UserError if none are left."""
        found = {name: module for name, module in model.named_modules() if type(module) in kinds}
        spoken = ", ".join(kind.__name__ for kind in kinds)
        return {name: found[name] for name in chosen(model, found, self.skip, spoken)}


@dataclass(frozen=True)
class Calibrated(Scheme):
    """How activations become integers too, in ranges found by looking at calibration data."""

    activation_bits: int = param(8, "bits of what goes into a layer", interval="[1, 8]", search=(4, 8))
    observer: str = param("minmax", "range of an activation", choices=OBSERVERS, search=OBSERVERS)
    percentile: float = param(
        99.99,
        "share of an activation's values to cover, in percent",
        interval="(50, 100]",
        when={"observer": ("percentile",)},
    )
    calibration_samples: int = param(512, "training examples to see activations of", interval="[1, inf)")

    def input_bits(self, module: nn.Module) -> int:
        """Bits of what goes into a layer, sum or pooling."""
        return SUM_BITS if isinstance(module, (Add, nn.AdaptiveAvgPool2d)) else self.activation_bits

    def bounds(self, observed: Observed, bits: int) -> observers.Bounds:
        """The range of an activation of `bits` bits, as the chosen observer sees it."""
        if self.observer == "percentile":
            return observers.percentile(observed, self.percentile)
        if self.observer in ("entropy", "mse"):
            return getattr(observers, self.observer)(observed, bits)
        return getattr(observers, self.observer)(observed)
