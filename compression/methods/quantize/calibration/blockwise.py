"""The base of quantizers of transformers that go block by block, each on what the quantized blocks before it return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression.errors import UserError
from compression.methods.blockwise.blocks import block_names, find_blocks, short_example
from compression.methods.blockwise.checkpoint import BlockCheckpoints
from compression.methods.blockwise.walk import batch_size, walk
from compression.methods.quantize.calibration.activations import calibration_batches
from compression.methods.quantize.calibration.clipping import clipped
from compression.methods.quantize.calibration.scheme import WeightQuantization
from compression.methods.quantize.calibration.selection import require_in_floats
from compression.methods.quantize.calibration.weights import weight_qparams
from compression.nn.graph import replace_module
from compression.nn.quantized import QuantLinear
from compression.nn.selection import resolve_names
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from compression.methods.blockwise.walk import Stage
    from compression.nn.quantized import QParams
    from compression.training.context import Context


@dataclass(frozen=True)
class BlockwiseQuantization(WeightQuantization):
    """Options of weight-only quantizers of the linear layers in a transformer's blocks; all else stays in floats."""

    requires: ClassVar[str] = "text"

    bits: int = param(4, "bits of a weight", interval="[2, 8]", search=(2, 8))
    granularity: str = param(
        "group", "weights that share a scale", choices=("channel", "group"), search=("channel", "group")
    )
    group_size: int = param(
        64, "weights to a group, along the inputs", interval="[2, inf)", when={"granularity": ("group",)}
    )
    symmetric: bool = param(False, "spread a weight's codes evenly around zero")
    # SmolLM2-135M at 4 bits in groups of 64 (floats 20.5, rounded 25.8): gptq 21.6 clipped and 23.1 not; with codes
    # even around zero 22.2 and 25.3.
    clip: bool = param(True, "clip each group's range to where it costs the outputs least, instead of weight_observer")
    # Not mse, as elsewhere: it clips the few large weights, on which most depends. SmolLM2-135M rounded to 4 bits in
    # groups of 64 has a perplexity of 26.9 by minmax and of 30.0 by mse (floats: 21.2).
    weight_observer: str = param(
        "minmax",
        "range of a weight: minmax covers all of it, mse has the least squared error",
        choices=("minmax", "mse"),
        when={"clip": (False,)},
    )
    calibration_samples: int = param(128, "training examples that show what the layers are given", interval="[1, inf)")

    def check(self, model: nn.Module, context: Context) -> None:
        """Refuse what is no transformer, and names of layers that there are not."""
        blocks = find_blocks(model, short_example(context.task.example(2)))
        resolve_names(self.skip, blocks.layers, option="skip")

    def group_qparams(self, values: Tensor, moment: Tensor) -> QParams:
        """The quantization parameters of a weight whose inputs have this second moment `(features, features)`."""
        if not self.clip:
            return self.weight_qparams(values, None)
        full = weight_qparams(values, self.bits, self.granularity, self.group_size, self.symmetric, observer="minmax")
        return clipped(values, full, moment, self.symmetric)

    def stages(self, model: nn.Module, context: Context) -> Iterator[tuple[Stage, dict[str, nn.Linear]]]:
        """Yield the groups of layers in turn, each with those of its layers to quantize, by name."""
        require_float_blocks(model)
        blocks = find_blocks(model, short_example(context.task.example(2)))
        skipped = resolve_names(self.skip, blocks.layers, option="skip")
        if not set(blocks.layers) - set(skipped):
            raise UserError(
                "There is nothing to quantize: the model has no linear layer in its blocks that is not skipped."
            )
        batches = calibration_batches(context, self.calibration_samples, batch_size(context.task))
        for stage in walk(model, batches, context.device, context.record, BlockCheckpoints(model, context)):
            if chosen := {name: layer for name, layer in stage.layers.items() if name not in skipped}:
                yield stage, chosen


def require_float_blocks(model: nn.Module) -> None:
    """Raise UserError for a model that has no blocks any more since its layers are quantized already."""
    if not block_names(model):
        require_in_floats(model)


def replace_linear(
    model: nn.Module, name: str, layer: nn.Linear, qparams: QParams, codes: Tensor | None = None
) -> None:
    """Put the integer form of `layer` in its place, in place; `codes` replaces rounding to the nearest."""
    replace_module(model, name, QuantLinear.from_float(layer, qparams, codes=codes))
