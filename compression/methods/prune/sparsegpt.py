"""SparseGPT: the weights that stay make up for those that go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.methods.prune.masks.layerwise import Layerwise, least, least_of_each
from compression.methods.prune.masks.scores import shares
from compression.params import param


@dataclass(frozen=True)
class SparseGpt(Layerwise):
    """Prune column by column and let the later weights make up for it.  Frantar & Alistarh 2023, arXiv:2301.00774,
    algorithm 1.

    After training, without any more of it. A convolution is taken as the linear layer over the patches it sees.
    """

    dampening: float = param(
        0.01,
        "added to the Hessian's diagonal, as a share of its mean",
        interval="(0, inf)",
        search=(1e-3, 0.1),
        log=True,
    )
    block: int = param(128, "columns among which the weights to prune are chosen at a time", interval="[1, inf)")

    def moment(self, rows: Tensor) -> Tensor:
        # double, since the inverse of a sum over few examples is ill-conditioned
        return rows.double().mT @ rows.double()

    def pruned(self, weight: Tensor, moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        found, keep = reconstruct(weight, moment, allowed, self.sparsity, self.kept_of, self.dampening, self.block)
        return found.to(weight.dtype), keep


def reconstruct(
    weight: Tensor,
    moment: Tensor,
    allowed: Tensor,
    sparsity: float,
    kept_of: tuple[int, int] | None = None,
    dampening: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """The pruned weight `(outputs, inputs)`, in double, and its mask.

    `moment` `(inputs, inputs)` is X^T X of the inputs, half the Hessian of the squared error of the outputs. What is
    not `allowed` is pruned first. `kept_of` = (n, m) prunes n:m instead of to `sparsity`.
    """
    weight, keep = weight.double().clone(), torch.ones_like(allowed)
    width = block if kept_of is None else max(1, block // kept_of[1]) * kept_of[1]
    parts = torch.arange(weight.shape[1]).split(width)
    factor, unused = inverse_factor(moment, dampening), moment.diagonal() == 0
    counts = shares([len(weight) * len(p) for p in parts], sparsity)
    for part, count in zip(parts, counts, strict=True):
        columns = slice(int(part[0]), int(part[-1]) + 1)
        saliency = (weight[:, columns] / factor.diagonal()[columns]).square()  # w^2 / [H^-1]_jj, eq. 3
        saliency[:, unused[columns]] = 0.0  # an input that is always zero
        saliency.masked_fill_(~allowed[:, columns], -1.0)
        keep[:, columns] = allowed[:, columns] & ~chosen(saliency, count, kept_of)
        errors = eliminate(weight[:, columns], keep[:, columns], factor[columns, columns])
        weight[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
    return weight, keep


def chosen(saliency: Tensor, count: int, kept_of: tuple[int, int] | None) -> Tensor:
    """A mask of the weights to prune: the `count` least of the block, or those that n:m leaves out."""
    if kept_of:
        return least_of_each(saliency, *kept_of)
    return least(saliency.reshape(1, -1), [count]).view_as(saliency)


def inverse_factor(moment: Tensor, dampening: float) -> Tensor:
    """The upper Cholesky factor R of the damped moment's inverse, R^T R = H^-1.

    Row j of R, from the diagonal on, holds what is left of H^-1 once the columns before j are eliminated, over the
    root of its own diagonal entry: all inverses that the elimination needs (section 3.3).
    """
    diagonal = moment.diagonal()
    damped = moment.double() + dampening * diagonal.mean() * torch.eye(len(moment), device=moment.device)
    unused = diagonal == 0
    damped[unused, unused] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def eliminate(weight: Tensor, keep: Tensor, factor: Tensor) -> Tensor:
    """Zero what `keep` leaves out, column by column, in place, correcting the columns to the right in the block.

    Returns the errors `(outputs, columns)`, scaled so that `errors @ factor` corrects the columns after the block.
    """
    errors = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        errors[:, j] = weight[:, j] * ~keep[:, j] / factor[j, j]
        weight[:, j:] -= errors[:, j, None] * factor[j, j:]
        weight[:, j] *= keep[:, j]
    return errors
