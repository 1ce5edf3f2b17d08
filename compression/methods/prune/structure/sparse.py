"""Training that makes channels small before they are removed: penalties on the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from compression.methods.prune.structure.importance import Member, members

ALPHA = 4.0  # the strongest pull is 2^4 times the weakest


def bn_penalty(model: nn.Module) -> Callable[[], Tensor]:
    """The sum of |scale| over all batch norms.  Liu et al. 2017, arXiv:1708.06519, eq. 1."""
    scales: list[Any] = [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return lambda: torch.stack([scale.abs().sum() for scale in scales]).sum()


def group_penalty(groups: Iterable[Any]) -> Callable[[], Tensor]:
    """Half the sum over groups and their channels k of gamma_k times the squared weights that go with k.

    Fang et al. 2023, arXiv:2301.12900, section 3.3: gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min)), where I_k is
    the norm of the channel's weights, so that what is small is pulled harder. Half, for the gradient to be gamma w.
    """
    found = [(len(group[0].idxs), list(members(group))) for group in groups]
    return lambda: torch.stack([_pulled(channels, parts) for channels, parts in found]).sum() / 2


def _pulled(channels: int, parts: list[Member]) -> Tensor:
    squares = torch.stack([_squares(part, channels) for part in parts]).sum(0)
    return (pull(squares.detach().sqrt()) * squares).sum()


def _squares(part: Member, channels: int) -> Tensor:
    """The sum of the squared weights of each of the group's channels in one member."""
    weight: Any = part.module.weight
    sums = weight.square().transpose(0, part.axis).flatten(1).sum(1) if weight.ndim > 1 else weight.square()
    index, roots = part.index.to(weight.device), part.roots.to(weight.device)
    return torch.zeros(channels, device=weight.device).index_add(0, roots, sums.index_select(0, index))


def pull(norms: Tensor) -> Tensor:
    """gamma_k for the norms of a group's channels, `(channels,)`."""
    spread = (norms.max() - norms.min()).clamp_min(torch.finfo(norms.dtype).tiny)
    return 2 ** (ALPHA * (norms.max() - norms) / spread)
