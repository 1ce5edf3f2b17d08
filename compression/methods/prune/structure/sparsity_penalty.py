"""Penalties on the loss that make channels small in a training, before they are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.methods.prune.structure.dependencies import channel_rows
from compression.methods.prune.structure.importance import GroupMember, group_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ALPHA = 4.0  # the smallest channel's penalty has 2^4 times the weight of the largest's


def bn_penalty(model: nn.Module) -> Callable[[], Tensor]:
    """The sum of |scale| over all batch norms, a scalar.  Liu et al. 2017, arXiv:1708.06519, eq. 1."""
    scales: list[Any] = [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return lambda: torch.stack([scale.abs().sum() for scale in scales]).sum()


def group_penalty(groups: Iterable[Any]) -> Callable[[], Tensor]:
    """Half the sum over groups and their channels k of gamma_k times the squared weights of k, a scalar.

    Fang et al. 2023, arXiv:2301.12900, section 3.3: gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min)), where I_k is
    the norm of the channel's weights, so that small channels shrink most. Half, for the gradient to be gamma w.
    `groups` are torch-pruning's.
    """
    members = [(len(group[0].idxs), list(group_members(group))) for group in groups]

    def penalty() -> Tensor:
        sums = []
        for channels, parts in members:
            squares = torch.stack([channel_squares(part, channels) for part in parts]).sum(0)
            # gamma is a constant of the step: the penalty's gradient is to be gamma w, without gamma's own.
            sums.append((channel_weights(squares.detach().sqrt()) * squares).sum())
        return torch.stack(sums).sum() / 2

    return penalty


def channel_squares(member: GroupMember, channels: int) -> Tensor:
    """The sum of the squared weights of each of the group's channels in one member, `(channels,)`."""
    weight: Any = member.module.weight
    sums = channel_rows(member.module, weight.square(), member.of_inputs).sum(1)
    index, channel = member.index.to(weight.device), member.channel.to(weight.device)
    return torch.zeros(channels, device=weight.device).index_add(0, channel, sums.index_select(0, index))


def channel_weights(norms: Tensor) -> Tensor:
    """gamma_k for the norms of a group's channels; both `(channels,)`."""
    # Of equal norms all weights are 2^0, not 0 / 0.
    spread = (norms.max() - norms.min()).clamp_min(torch.finfo(norms.dtype).tiny)
    weights: Tensor = 2 ** (ALPHA * (norms.max() - norms) / spread)
    return weights
