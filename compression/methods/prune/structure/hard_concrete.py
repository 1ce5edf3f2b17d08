"""The hard concrete distribution: a smooth way to learn gates that are exactly 0 or 1.  Louizos et al. 2018,
arXiv:1712.01312."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and ends of the stretched interval, as in the paper's section 4
SOFTNESS = 0.8  # Xia et al. 2022's constant in the value of an open gate, in their released code


def quantile(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The gate in [0, 1] at the share `uniform` of its distribution: a sample, for a uniform number (eq. 10, 11)."""
    concrete = ((uniform.log() - (1 - uniform).log() + log_alpha) / BETA).sigmoid()
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(gate > 0), whose sum is the expected L0 norm (eq. 12)."""
    return (log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid()


def decided(log_alpha: Tensor, multiple: int = 1) -> Tensor:
    """The gates `(n,)` once nothing is drawn: as many open as the expected L0 norm says, the likeliest ones.

    Their number is rounded, up to a `multiple` if there is one. Values of open gates are soft and never 0
    (Xia et al. 2022, section 3.1, prune those with the least expected value).
    """
    opened = int(open_probability(log_alpha).sum().round())
    opened = min(len(log_alpha), math.ceil(opened / multiple) * multiple)
    chosen = log_alpha.topk(opened).indices
    soft = (log_alpha / BETA * SOFTNESS).sigmoid()
    return torch.zeros_like(soft).index_copy(0, chosen, soft[chosen])


class Gates(nn.Module):
    """A row of gates: drawn anew by `draw` while training, decided in evaluation.

    `multiple` is what the number of open ones must divide by.
    """

    def __init__(self, count: int, start: float, multiple: int = 1) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((count,), start))
        self.multiple = multiple
        self.drawn = torch.ones(count)

    def draw(self) -> None:
        # away from 0 and 1, whose logarithms are infinite
        uniform = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
        self.drawn = quantile(self.log_alpha, uniform)

    def decide(self, shift: float = 0.0) -> Tensor:
        """The gates if all `log_alpha` were higher by `shift`."""
        return decided(self.log_alpha + shift, self.multiple)

    def forward(self) -> Tensor:
        return self.drawn if self.training else self.decide()
