"""The hard concrete distribution: a smooth way to learn gates that are exactly 0 or 1.

Louizos et al. 2018, arXiv:1712.01312; equations are theirs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and ends of the stretched interval, as in the paper's section 4
SOFTNESS = 0.8  # Xia et al. 2022's constant in the value of an open gate, in their released code


def quantile(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The value in [0, 1] at the quantile `uniform` of each gate's distribution (eq. 10, 11); `(n,)` each.

    For a uniform random number, it is a sample of the gate.
    """
    concrete = ((uniform.log() - (1 - uniform).log() + log_alpha) / BETA).sigmoid()  # eq. 10, in (0, 1)
    # eq. 11: stretched over both ends, so that 0 and 1 themselves have a probability
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(gate > 0), `(n,)`, whose sum is the expected L0 norm (eq. 12)."""
    return (log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid()


def discretize(log_alpha: Tensor, multiple: int = 1) -> Tensor:
    """Values `(n,)` without randomness: as many gates are open as the expected L0 norm says, the likeliest ones.

    Their number is rounded, then rounded up to a `multiple`. Values of open gates are soft and never 0 (Xia et al.
    2022, section 3.1, prune those with the least expected value).
    """
    count = int(open_probability(log_alpha).sum().round())
    count = min(len(log_alpha), math.ceil(count / multiple) * multiple)
    opened = log_alpha.topk(count).indices
    soft = (log_alpha / BETA * SOFTNESS).sigmoid()
    return torch.zeros_like(soft).index_copy(0, opened, soft[opened])


class Gates(nn.Module):
    """A row of gates: the last sample while training, discretized in evaluation.

    `multiple` is what the number of open gates must divide by. Until the first `sample`, all are open.
    """

    def __init__(self, count: int, initial: float, multiple: int = 1) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((count,), initial))
        self.multiple = multiple
        self.sampled = torch.ones(count)

    def sample(self) -> None:
        """Draw new values for the next forward passes."""
        # away from 0 and 1, whose logarithms are infinite
        uniform = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
        self.sampled = quantile(self.log_alpha, uniform)

    def discretized(self, shift: float = 0.0) -> Tensor:
        """The discretized gates if all `log_alpha` were higher by `shift`."""
        return discretize(self.log_alpha + shift, self.multiple)

    def forward(self) -> Tensor:
        """The present values, `(count,)`."""
        return self.sampled if self.training else self.discretized()
