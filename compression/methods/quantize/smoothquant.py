"""SmoothQuant: outliers of activations move into the weights, before both are quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.blockwise.blocks import find_blocks, short_example
from compression.methods.blockwise.checkpoint import BlockCheckpoints
from compression.methods.blockwise.folding import Fold, find_fold
from compression.methods.blockwise.walk import Stage, batch_size, walk
from compression.methods.quantize.calibration.activations import calibration_batches
from compression.methods.quantize.calibration.blockwise import require_float_blocks
from compression.nn.layers import weight
from compression.params import param

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compression.training.context import Context


@dataclass(frozen=True)
class SmoothQuant(Method):
    """Move the outliers of a transformer's activations into its weights; `static` or `dynamic` then quantizes both.

    Xiao et al. 2022, arXiv:2211.10438, section 4. The model computes what it did, in floats, up to rounding: a chain
    goes on with `smoothquant+static`, or `smoothquant+dynamic`. Scales are folded into the norms and linear layers
    before; layers behind anything else stay as they are.
    """

    family: ClassVar[str] = "quantize"
    requires: ClassVar[str] = "text"

    alpha: float = param(
        0.5, "how much of an outlier moves into the weights: 0 none, 1 all", interval="[0, 1]", search=(0.3, 0.9)
    )
    calibration_samples: int = param(128, "training examples that show what the layers are given", interval="[1, inf)")

    def check(self, model: nn.Module, context: Context) -> None:
        """Refuse what is no transformer."""
        find_blocks(model, short_example(context.task.example(2)))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Fold scales into the model, in place. Raises UserError where nothing could take any."""
        require_float_blocks(model)
        batches = calibration_batches(context, self.calibration_samples, batch_size(context.task))
        smoothed: list[str] = []
        left: list[str] = []
        for stage in walk(model, batches, context.device, context.record, BlockCheckpoints(model, context)):
            fold = find_fold(stage)
            if fold is None:
                left += stage.layers
                continue
            fold.apply(stage.layers, self.scales(stage, fold))
            smoothed += stage.layers
        if not smoothed:
            raise UserError("Nothing to smooth: no norm or linear layer of the blocks could take scales of the others.")
        if left:
            context.record.warn(f"Not smoothed, since nothing before them could take scales: {', '.join(left)}.")
        return model

    def scales(self, stage: Stage, fold: Fold) -> Tensor:
        """The scales of a group of layers, one for each channel of the module that takes them."""
        largest = torch.stack([rows.abs().amax(0) for rows in stage.rows()]).amax(0)
        weights = torch.stack([weight(layer).abs().amax(0) for layer in stage.layers.values()]).amax(0)
        return smoothing_scales(fold.of_inputs(largest, "amax"), fold.of_inputs(weights, "amax"), self.alpha)


def smoothing_scales(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max|X_j|^alpha / max|W_j|^(1 - alpha), eq. 4, from these maxima `(channels,)`; 1 where either is zero."""
    scales = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), scales, torch.ones_like(scales))
