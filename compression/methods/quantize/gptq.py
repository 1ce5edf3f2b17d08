"""GPTQ: the weights that are not rounded yet make up for those that are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from compression.methods.blockwise.moments import DAMPENING_HELP, mended_inverse_factor, second_moment
from compression.methods.quantize.calibration.blockwise import BlockwiseQuantization, replace_linear
from compression.methods.quantize.calibration.rounding import column_order, round_columns
from compression.nn.layers import weight
from compression.params import param

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context


@dataclass(frozen=True)
class Gptq(BlockwiseQuantization):
    """Round a transformer's weights column by column, and let the later ones make up for each error.

    Frantar et al. 2022, arXiv:2210.17323, algorithm 1; the ranges of groups are clipped as by AWQ (`clip`), where the
    paper takes the whole of them. After training, without any more of it, block by block. The embeddings and the head
    stay in floats, and so do activations.
    """

    act_order: bool = param(True, "round the columns with the largest inputs first")
    dampening: float = param(
        0.01,
        DAMPENING_HELP,
        interval="(0, 1]",
        search=(1e-3, 0.1),
        log=True,
    )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantize in place."""
        mended: list[str] = []
        for stage, layers in self.stages(model, context):
            hessian, names = second_moment(stage.rows()), ", ".join(layers)
            # Of single precision and size 1, for what it costs to clip.
            moment = (hessian / hessian.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)).float()
            order = column_order(hessian) if self.act_order else torch.arange(len(hessian), device=hessian.device)
            factor, dampening = mended_inverse_factor(hessian[order][:, order], self.dampening, names)
            if dampening > self.dampening:
                mended.append(f"{names} ({dampening:g})")
            for name, layer in layers.items():
                # The scales are those of the weights as they are: whatever the order, groups stay neighbours.
                qparams = self.group_qparams(weight(layer), moment)
                codes = round_columns(weight(layer), qparams, factor, order, getattr(layer, "mask", None))
                replace_linear(model, name, layer, qparams, codes)
        if mended:
            context.record.warn(
                f"Too few different inputs for a dampening of {self.dampening:g}; raised for {'; '.join(mended)}. "
                "Take more calibration_samples."
            )
        return model
