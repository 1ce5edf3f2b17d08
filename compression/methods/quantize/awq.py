"""AWQ: weights with large inputs are scaled up before they are rounded, and their inputs down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.methods.blockwise.folding import Fold, find_fold
from compression.methods.quantize.calibration.blockwise import BlockwiseQuantization, replace_linear
from compression.methods.quantize.calibration.weights import quantize_dequantize, weight_qparams
from compression.nn.layers import weight
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from compression.training.context import Context


@dataclass(frozen=True)
class Awq(BlockwiseQuantization):
    """Scale a transformer's weights by what their inputs are like, so that rounding costs the outputs least.

    Lin et al. 2023, arXiv:2306.00978, section 3.2. The scales are folded into the norms and linear layers before, and
    cost nothing; layers behind anything else are rounded, and clipped, as they are. After training, block by block.
    The embeddings and the head stay in floats, and so do activations.
    """

    grid: int = param(20, "exponents that are tried for the scales", interval="[1, inf)")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Scale and quantize in place."""
        unscaled: list[str] = []
        for stage, layers in self.stages(model, context):
            inputs = summarize(stage.rows())
            fold = find_fold(stage)
            if fold is None:
                unscaled += layers
            else:
                scales = self.best_scales(layers, inputs, fold)
                fold.apply(stage.layers, scales)
                inputs = inputs.divided(scales[fold.channels])
            for name, layer in layers.items():
                replace_linear(model, name, layer, self.group_qparams(weight(layer), inputs.moment))
        if unscaled:
            context.record.warn(
                "Rounded without scales, since nothing before them could take any: " + ", ".join(unscaled) + "."
            )
        return model

    def best_scales(self, layers: Mapping[str, nn.Linear], inputs: InputSummary, fold: Fold) -> Tensor:
        """The scales `(width of the fold,)` with the least squared error of the layers' outputs, eq. 4 and 5.

        None, that is ones, where the ranges that are clipped afterwards serve the weights as they are better.
        """
        magnitudes = fold.of_inputs(inputs.magnitude, "mean")
        best, least = torch.ones_like(magnitudes), torch.tensor(torch.inf, dtype=inputs.moment.dtype)
        for exponent in torch.arange(self.grid) / self.grid:
            scales = power_scales(magnitudes, exponent.item())
            columns = scales[fold.channels]
            errors = [self._rounding_error(weight(layer), columns, inputs.moment) for layer in layers.values()]
            error = torch.stack(errors).sum()
            if error < least:
                best, least = scales, error
        if not self.clip:
            return best
        # The exponents are compared by whole ranges: to clip for each takes eleven times as long. Without this last
        # look SmolLM2-135M has a perplexity of 23.2 instead of 23.0 at 4 bits (22.0 with no scales at all: its weights
        # lie on a grid of 4 bits already, which scales leave).
        plain = torch.ones_like(best)
        found = [self._clipped_error(layers, inputs, scales[fold.channels]) for scales in (best, plain)]
        return best if found[0] < found[1] else plain

    def _clipped_error(self, layers: Mapping[str, nn.Linear], inputs: InputSummary, scales: Tensor) -> Tensor:
        """The error of the outputs where the layers' weights times `scales` are rounded in clipped ranges."""
        moment = inputs.divided(scales).moment
        errors = []
        for layer in layers.values():
            scaled = weight(layer) * scales
            rounded = quantize_dequantize(scaled, self.group_qparams(scaled, moment))
            errors.append(output_error(rounded - scaled, moment))
        return torch.stack(errors).sum()

    def _rounding_error(self, values: Tensor, scales: Tensor, moment: Tensor) -> Tensor:
        """The error of the outputs where `values` is rounded with its columns times `scales`."""
        symmetric, size = self.symmetric, self.group_size
        scaled = values * scales
        qparams = weight_qparams(scaled, self.bits, self.granularity, size, symmetric, observer="minmax")
        return output_error(quantize_dequantize(scaled, qparams) / scales - values, moment)


@dataclass(frozen=True)
class InputSummary:
    """What the scales need to know of a group's inputs."""

    moment: Tensor  # (features, features), X^T X over the number of inputs
    magnitude: Tensor  # (features,), the mean of |X|

    def divided(self, scales: Tensor) -> InputSummary:
        """Those of the inputs divided by `scales` `(features,)`."""
        return InputSummary(self.moment / torch.outer(scales, scales), self.magnitude / scales)


def summarize(rows: Iterable[Tensor]) -> InputSummary:
    """The summary of inputs in batches `(n, features)`, in single precision."""
    moment, magnitude, count = None, None, 0
    for batch in map(Tensor.float, rows):
        product, absolute = batch.mT @ batch, batch.abs().sum(0)
        moment = product if moment is None else moment.add_(product)
        magnitude = absolute if magnitude is None else magnitude.add_(absolute)
        count += len(batch)
    assert moment is not None
    assert magnitude is not None
    return InputSummary(moment / count, magnitude / count)


def power_scales(magnitudes: Tensor, exponent: float) -> Tensor:
    """`magnitudes` to the power of `exponent`, eq. 5, over the geometric mean of the largest and the smallest."""
    powers = magnitudes.clamp_min(1e-4 * magnitudes.max()).pow(exponent)  # of what is always zero, anything would do
    scales = powers / (powers.max() * powers.min()).sqrt()
    return torch.where(scales.isfinite() & (scales > 0), scales, torch.ones_like(scales))


def output_error(error: Tensor, moment: Tensor) -> Tensor:
    """Mean squared norm of the outputs of a weight `error` `(outputs, features)` on inputs with this second moment."""
    return ((error @ moment) * error).sum()
