"""SparseGPT: the remaining weights make up for the pruned ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.methods.blockwise.moments import DAMPENING_HELP, mended_inverse_factor
from compression.methods.prune.masks.layerwise import LayerwisePruning, smallest_of_each, smallest_per_row
from compression.methods.prune.masks.scores import prune_counts
from compression.params import param


@dataclass(frozen=True)
class SparseGpt(LayerwisePruning):
    """Prune column by column and let the later weights make up for it.  Frantar & Alistarh 2023, arXiv:2301.00774,
    algorithm 1.

    After training, without any more of it. A convolution is taken as the linear layer over the patches it sees.
    """

    dampening: float = param(
        0.01,
        DAMPENING_HELP,
        interval="(0, inf)",
        search=(1e-3, 0.1),
        log=True,
    )
    block: int = param(
        128, "columns among which the weights to prune are chosen at a time; with a pattern its m", interval="[1, inf)"
    )

    def input_moment(self, rows: Tensor) -> Tensor:
        """X^T X, `(groups, columns, columns)`."""
        # in double precision, since the inverse of a sum over few examples is ill-conditioned
        return rows.double().mT @ rows.double()

    def prune_matrix(self, weight: Tensor, second_moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Prune and update one group's weight, and return it in its own precision."""
        updated, keep = prune_and_update(
            weight, second_moment, allowed, self.sparsity, self.n_of_m, self.dampening, self.block
        )
        return updated.to(weight.dtype), keep


def prune_and_update(
    weight: Tensor,
    second_moment: Tensor,
    allowed: Tensor,
    sparsity: float,
    n_of_m: tuple[int, int] | None = None,
    dampening: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """The pruned and updated weight `(outputs, inputs)`, in double precision, and its mask.

    `second_moment` `(inputs, inputs)` is X^T X of the inputs, half the Hessian of the squared error of the outputs.
    What is not `allowed` is pruned first. `n_of_m` = (n, m) prunes n:m instead of to `sparsity`. Raises UserError for
    moments that are not finite.
    """
    weight, keep = weight.double().clone(), torch.ones_like(allowed)
    # With more dampening where this is too little for so few different inputs.
    factor, _ = mended_inverse_factor(second_moment, dampening, f"a layer of {weight.shape[1]} inputs")
    unused = second_moment.diagonal() == 0
    blocks = _slices(0, weight.shape[1], block if n_of_m is None else max(1, block // n_of_m[1]) * n_of_m[1])
    counts = prune_counts([len(weight) * (columns.stop - columns.start) for columns in blocks], sparsity)
    for columns, count in zip(blocks, counts, strict=True):
        errors = torch.empty_like(weight[:, columns])
        # Of n:m each m columns are chosen among once those before them are corrected, not all of a block at once: that
        # would leave 2.4 to 2.7 times the error of the outputs.
        for part in [columns] if n_of_m is None else _slices(columns.start, columns.stop, n_of_m[1]):
            saliency = (weight[:, part] / factor.diagonal()[part]).square()  # w^2 / [H^-1]_jj, eq. 3
            saliency[:, unused[part]] = 0.0  # an input that is always zero
            # below every square, so that what was pruned before goes first and is counted
            saliency.masked_fill_(~allowed[:, part], -1.0)
            keep[:, part] = allowed[:, part] & ~prune_mask(saliency, count, n_of_m)
            found = eliminate(weight[:, part], keep[:, part], factor[part, part])
            weight[:, part.stop : columns.stop] -= found @ factor[part, part.stop : columns.stop]
            errors[:, part.start - columns.start : part.stop - columns.start] = found
        # Columns behind the block are corrected once a block, by a matrix product, not once a column (algorithm 1).
        weight[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
    return weight, keep


def _slices(start: int, stop: int, width: int) -> list[slice]:
    return [slice(at, min(at + width, stop)) for at in range(start, stop, width)]


def prune_mask(saliency: Tensor, count: int, n_of_m: tuple[int, int] | None) -> Tensor:
    """A mask of the weights to prune: the `count` smallest of the block, or those that n:m does not keep."""
    if n_of_m:
        return smallest_of_each(saliency, *n_of_m)
    return smallest_per_row(saliency.reshape(1, -1), [count]).view_as(saliency)


def eliminate(weight: Tensor, keep: Tensor, factor: Tensor) -> Tensor:
    """Zero the weights `(outputs, columns)` that `keep` leaves out, and update those to their right; in place.

    Returns the errors `(outputs, columns)`, scaled so that `errors @ factor` corrects the columns after the block.
    """
    errors = torch.zeros_like(weight)
    # w_j / R_jj R_jk = w_j [H^-1]_jk / [H^-1]_jj, the update of eq. 3: R_j: is the row of the inverse over the root of
    # its diagonal entry, and R_jj that root.
    for j in range(weight.shape[1]):
        errors[:, j] = weight[:, j] * ~keep[:, j] / factor[j, j]
        weight[:, j:] -= errors[:, j, None] * factor[j, j:]
        # exactly 0, which the update meets up to rounding; kept weights had no error, and do not change here
        weight[:, j] *= keep[:, j]
    return errors
