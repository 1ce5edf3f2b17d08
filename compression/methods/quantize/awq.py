"""AWQ: weights with large inputs are scaled up before they are rounded, and their inputs down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.blockwise.folding import Fold, find_fold
from compression.methods.quantize.calibration.blockwise import BlockwiseQuantization, replace_linear
from compression.methods.quantize.calibration.weights import quantize_dequantize, weight_qparams
from compression.nn.layers import weight
from compression.nn.quantized import QParams, calc_qparams, dequantize, quantize, split_groups
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from compression.training.context import Context

SHARES = torch.linspace(1.0, 0.5, 11)  # of a group's range that clipping tries; 1 clips nothing


@dataclass(frozen=True)
class Awq(BlockwiseQuantization):
    """Scale a transformer's weights by what their inputs are like, so that rounding costs the outputs least.

    Lin et al. 2023, arXiv:2306.00978, section 3.2. The scales are folded into the norms and linear layers before, and
    cost nothing; layers behind anything else are rounded, and clipped, as they are. After training, block by block.
    The embeddings and the head stay in floats, and so do activations.
    """

    clip: bool = param(True, "clip each group's range to where it costs the outputs least, instead of weight_observer")
    weight_observer: str = param(
        "minmax",
        "range of a weight: minmax covers all of it, mse has the least squared error",
        choices=("minmax", "mse"),
        when={"clip": (False,)},
    )
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
                replace_linear(model, name, layer, self.final_qparams(weight(layer), inputs.moment))
        if unscaled:
            context.record.warn(
                "Rounded without scales, since nothing before them could take any: " + ", ".join(unscaled) + "."
            )
        return model

    def best_scales(self, layers: Mapping[str, nn.Linear], inputs: InputSummary, fold: Fold) -> Tensor:
        """The scales `(width of the fold,)` with the least squared error of the layers' outputs, eq. 4 and 5."""
        magnitudes = fold.of_inputs(inputs.magnitude, "mean")
        best, least = torch.ones_like(magnitudes), torch.tensor(torch.inf, dtype=inputs.moment.dtype)
        for exponent in torch.arange(self.grid) / self.grid:
            scales = power_scales(magnitudes, exponent.item())
            columns = scales[fold.channels]
            errors = [self._rounding_error(weight(layer), columns, inputs.moment) for layer in layers.values()]
            error = torch.stack(errors).sum()
            if error < least:
                best, least = scales, error
        return best

    def _rounding_error(self, values: Tensor, scales: Tensor, moment: Tensor) -> Tensor:
        """Squared error of the outputs where `values` is rounded with its columns times `scales`."""
        symmetric, size = self.symmetric, self.group_size
        scaled = values * scales
        qparams = weight_qparams(scaled, self.bits, self.granularity, size, symmetric, observer="minmax")
        return output_error(quantize_dequantize(scaled, qparams) / scales - values, moment)

    def final_qparams(self, values: Tensor, moment: Tensor) -> QParams:
        """The quantization parameters of a weight whose inputs have this second moment."""
        if not self.clip:
            return self.weight_qparams(values, None)
        full = weight_qparams(values, self.bits, self.granularity, self.group_size, self.symmetric, observer="minmax")
        return clipped(values, full, moment, self.symmetric)


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


@torch.no_grad()
def clipped(values: Tensor, full: QParams, moment: Tensor, symmetric: bool) -> QParams:
    """`full` with each group's range reduced to the share with the least error of that group's part of the outputs.

    Lin et al. 2023, section 3.2 and appendix; `moment` `(features, features)` is that of the inputs.
    """
    groups = split_groups(values.float(), full.granularity, full.group_size)
    own = _diagonal_blocks(moment, groups.shape[2])
    minimum, maximum = groups.amin(2), groups.amax(2)
    scale, zero_point = full.scale, full.zero_point
    least = torch.full_like(scale, torch.inf)
    for share in SHARES.tolist():
        tried = calc_qparams(minimum * share, maximum * share, full.low, full.high, symmetric)
        wide, zero = (each.unsqueeze(2) for each in tried)
        error = dequantize(quantize(groups, wide, zero, full.low, full.high), wide, zero) - groups
        by_group = error.transpose(0, 1)  # (groups, rows, size)
        cost = ((by_group @ own) * by_group).sum(2).T
        better = cost < least
        scale, zero_point = torch.where(better, tried[0], scale), torch.where(better, tried[1], zero_point)
        least = torch.where(better, cost, least)
    return replace(full, scale=scale, zero_point=zero_point)


def _diagonal_blocks(moment: Tensor, size: int) -> Tensor:
    """The blocks `(groups, size, size)` on the diagonal of a matrix, which is padded with zeros to whole blocks."""
    missing = -len(moment) % size
    padded = F.pad(moment, (0, missing, 0, missing))
    count = len(padded) // size
    return padded.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
