"""GPTQ: the weights that are not rounded yet make up for those that are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.methods.blockwise.moments import DAMPENING_HELP, mended_inverse_factor, second_moment
from compression.methods.quantize.calibration.blockwise import BlockwiseQuantization, replace_linear
from compression.nn.layers import weight
from compression.nn.quantized import QParams, dequantize, quantize
from compression.params import param

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context

COLUMNS = 128  # rounded one by one before the columns behind them are corrected, by one product of matrices


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


def column_order(hessian: Tensor) -> Tensor:
    """The columns by the size of their inputs, the largest first, `(columns,)`."""
    return hessian.diagonal().argsort(descending=True, stable=True)


@torch.no_grad()
def round_columns(
    values: Tensor, qparams: QParams, factor: Tensor, order: Tensor, keep: Tensor | None = None
) -> Tensor:
    """The codes of a weight `(outputs, columns)`, in its shape, whose columns are rounded in `order` `(columns,)`.

    `factor` is `inverse_factor` of the Hessian with rows and columns in this order. Frantar et al. 2022, algorithm 1.
    What `keep` leaves out, pruned weights, is rounded to zero.
    """
    # A column of the weight is a row here, so that it lies in one piece.
    scale, zero_point = (_per_column(each, qparams, len(order))[order] for each in (qparams.scale, qparams.zero_point))
    rest = values.double().T[order].contiguous()
    kept = torch.ones_like(rest, dtype=torch.bool) if keep is None else keep.T[order]
    codes = torch.empty_like(rest)
    for start in range(0, len(rest), COLUMNS):
        stop = min(start + COLUMNS, len(rest))
        errors = torch.empty_like(rest[start:stop])
        for j in range(start, stop):
            codes[j] = quantize(rest[j] * kept[j], scale[j], zero_point[j], qparams.low, qparams.high)
            error = (rest[j] - dequantize(codes[j], scale[j], zero_point[j])) / factor[j, j]
            # Eq. 3: row j of the factor is that of the remaining inverse Hessian over the root of its diagonal entry.
            rest[j:stop] -= torch.outer(factor[j, j:stop], error)
            errors[j - start] = error
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return torch.empty_like(codes).index_copy_(0, order, codes).T


def _per_column(of_groups: Tensor, qparams: QParams, columns: int) -> Tensor:
    """Scales or zero points `(rows, groups)` as `(columns, rows)`, double precision."""
    return of_groups.double().T.repeat_interleave(qparams.group_size or columns, dim=0)[:columns]
