"""Second moments of the inputs of linear layers, and the factors of their inverses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

DAMPENING_HELP = "added to the Hessian's diagonal, as a share of its mean"
MOST_DAMPENING = 1.0  # a diagonal of its own mean again, with which no sum of squares is singular


def second_moment(rows: Iterable[Tensor]) -> Tensor:
    """X^T X of inputs X in batches `(n, features)`: `(features, features)`, in double precision."""
    total: Tensor | None = None
    for batch in rows:
        # Products in single precision, which are twice as fast: 2,048 of them are exact to 1e-6, and damping adds 1e-2.
        product = (batch.float().mT @ batch.float()).double()
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def inverse_factor(second_moment: Tensor, dampening: float) -> Tensor:
    """The upper Cholesky factor R of the damped moment's inverse, R^T R = H^-1; `(inputs, inputs)`, double precision.

    Row j of R, from the diagonal on, holds row j of the inverse of H without the columns before j, over the root of
    its own diagonal entry: all inverses that the elimination needs (Frantar & Alistarh 2023, section 3.3). The
    dampening is a share of the diagonal's mean. Raises torch.linalg.LinAlgError if H is not positive definite with it.
    """
    diagonal = second_moment.diagonal()
    identity = torch.eye(len(second_moment), device=second_moment.device)
    damped = second_moment.double() + dampening * diagonal.mean() * identity
    unused = diagonal == 0
    damped[unused, unused] = 1.0  # the inverse exists also with a dampening of 0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def mended_inverse_factor(second_moment: Tensor, dampening: float, name: str) -> tuple[Tensor, float]:
    """`inverse_factor` with the least of `dampening`, 10 times as much, … that has one; and that dampening.

    Raises UserError for the inputs of the layer `name` that are no finite numbers.
    """
    if not second_moment.isfinite().all():
        raise UserError(f"What {name} is given is not finite on the calibration examples: the model is broken.")
    while True:
        try:
            return inverse_factor(second_moment, dampening), dampening
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if dampening >= MOST_DAMPENING:
                raise
            dampening = min(MOST_DAMPENING, max(10 * dampening, 1e-4))
