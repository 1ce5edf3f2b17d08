"""Ranges of weights that are clipped to where it costs the layer's outputs least."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.nn.quantized import QParams, calc_qparams, dequantize, quantize, split_groups

SHARES = torch.linspace(1.0, 0.5, 11)  # of a group's range that are tried; 1 clips nothing


@torch.no_grad()
def clipped(values: Tensor, full: QParams, moment: Tensor, symmetric: bool) -> QParams:
    """`full` with each group's range reduced to the share with the least error of that group's part of the outputs.

    Lin et al. 2023, arXiv:2306.00978, section 3.2 and appendix; `moment` `(features, features)` is that of the inputs.
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
