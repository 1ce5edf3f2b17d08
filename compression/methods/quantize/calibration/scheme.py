"""The options of weight and activation quantization that several methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.quantize.calibration import figures, observers
from compression.methods.quantize.calibration.observers import OBSERVERS
from compression.methods.quantize.calibration.selection import SKIP_HELP, is_quantizable, select_layers
from compression.methods.quantize.calibration.weights import weight_qparams
from compression.nn.layers import WEIGHTLESS, weight
from compression.params import param

if TYPE_CHECKING:
    from compression.methods.quantize.calibration.activations import ActivationStatistics
    from compression.nn.inputs import Inputs
    from compression.nn.quantized import QParams
    from compression.training.context import RunLogger

# Of the inputs of sums, concatenations and mean poolings. Fewer would make no file smaller, for these store no weights,
# and cost the most quality: 8 bits there in place of the layers' own took `static` from 60.3 to 61.2% at W4A4
# and from 12 to 18% at W2A2 (2,000 images), and ran as fast.
SUM_BITS = 8


@dataclass(frozen=True)
class WeightQuantization(Method):
    """Options of weight quantization, and which layers stay in floats."""

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
        "mse",
        "range of a weight: minmax covers all of it, mse has the least squared error",
        choices=("minmax", "mse"),
    )
    skip: tuple[str, ...] = param((), SKIP_HELP)

    def weight_qparams(self, values: Tensor, activation_bits: int | None) -> QParams:
        """Quantization parameters of a weight for inputs of `activation_bits` (None: not quantized)."""
        return weight_qparams(
            values,
            self.bits,
            self.granularity,
            self.group_size,
            self.symmetric,
            activation_bits,
            self.weight_observer,
        )

    def log_weight_histograms(
        self, model: nn.Module, names: list[str], activation_bits: int | None, record: RunLogger
    ) -> None:
        """Record histograms of the weights of some of the layers `names`, with the range of their codes."""
        values = {name: weight(model.get_submodule(name)) for name in figures.evenly_spaced(names)}
        figures.log_weight_histograms(
            record, {n: (v, self.weight_qparams(v, activation_bits)) for n, v in values.items()}
        )

    def select_layers(self, model: nn.Module, example: Inputs, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
        """The layers of exactly these classes by name, except the skipped ones; raises UserError if none are left.

        Convolutions that pad with anything but zeros have no integer form, and are left out, as are layers whose
        weights functions read, too, on the prepared batch `example`.
        """
        found = {
            name: module
            for name, module in model.named_modules()
            if type(module) in kinds and (is_quantizable(module) or not isinstance(module, nn.Conv2d))
        }
        class_names = ", ".join(kind.__name__ for kind in kinds)
        return {name: found[name] for name in select_layers(model, found, self.skip, example, class_names)}


@dataclass(frozen=True)
class CalibratedQuantization(WeightQuantization):
    """Options of activation quantization with ranges that an observer chooses from calibration data."""

    activation_bits: int = param(8, "bits of what goes into a layer", interval="[1, 8]", search=(4, 8))
    observer: str = param("minmax", "how the range of an activation is chosen", choices=OBSERVERS, search=OBSERVERS)
    percentile: float = param(
        99.99,
        "share of an activation's values to cover, in percent",
        interval="(50, 100]",
        when={"observer": ("percentile",)},
    )
    calibration_samples: int = param(512, "training examples that calibrate the activations", interval="[1, inf)")

    def input_bits(self, module: nn.Module) -> int:
        """Bits of the inputs of a layer, sum, concatenation or pooling."""
        return SUM_BITS if isinstance(module, WEIGHTLESS) else self.activation_bits

    def activation_range(self, statistics: ActivationStatistics, bits: int) -> observers.Range:
        """The range of an activation of `bits` bits that the observer chooses."""
        match self.observer:
            case "percentile":
                return observers.percentile(statistics, self.percentile)
            case "moving_average":
                return observers.moving_average(statistics)
            case "entropy":
                return observers.entropy(statistics, bits)
            case "mse":
                return observers.mse(statistics, bits)
        return observers.minmax(statistics)
