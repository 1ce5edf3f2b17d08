"""Rounding of weights whose errors the weights that are not rounded yet make up for: GPTQ's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.methods.blockwise.moments import mended_inverse_factor
from compression.nn.matrices import from_matrices, mask_matrices, weight_matrices
from compression.nn.quantized import QParams, dequantize, quantize

if TYPE_CHECKING:
    from torch import nn

COLUMNS = 128  # rounded one by one before the columns behind them are corrected, by one product of matrices
DAMPENING = 0.01  # of the paper's experiments


def round_layer(layer: nn.Module, qparams: QParams, moments: Tensor, name: str) -> Tensor:
    """The codes of a linear layer's or convolution's weight, in its shape, by GPTQ.

    `moments` are X^T X of its inputs, `(groups, columns, columns)` as `nn.matrices` has them. Raises UserError for
    those of the layer `name` that are no finite numbers.
    """
    weights, masks = weight_matrices(layer), mask_matrices(layer)
    codes = []
    for i, (values, keep, moment) in enumerate(zip(weights, masks, moments, strict=True)):
        order = column_order(moment)
        factor, _ = mended_inverse_factor(moment[order][:, order], DAMPENING, name)
        rows = slice(i * len(values), (i + 1) * len(values))
        scale, zero_point = (each if len(each) == 1 else each[rows] for each in (qparams.scale, qparams.zero_point))
        own = replace(qparams, scale=scale, zero_point=zero_point)
        codes.append(round_columns(values, own, factor, order, keep))
    return from_matrices(layer, torch.stack(codes))


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
