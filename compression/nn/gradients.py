"""Gradients of a sequence of losses by given weights, of which one batch's are held at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor


def loss_gradients(losses: Iterable[Tensor], weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the gradient of each scalar loss by `weights`, in their shapes; zero for a weight the loss does not use."""
    for loss in losses:
        yield torch.autograd.grad(loss, weights, materialize_grads=True)


def sum_tensors(batches: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Sum the tensors at each position over the batches, of which there must be one at least."""
    batches = iter(batches)
    total = [first.clone() for first in next(batches)]
    for tensors in batches:
        for sum_, tensor in zip(total, tensors, strict=True):
            sum_ += tensor
    return total


def empirical_fisher(losses: Iterable[tuple[Tensor, int]], weights: Sequence[Tensor]) -> list[Tensor]:
    """Estimate the diagonal of the Fisher matrix at the true labels, in the shapes of `weights`.

    `losses` yields the mean loss of each batch and the batch's size. With batches of one example, the result is the
    mean of the squared gradients of the single examples. The gradient of a mean over b independent examples has 1/b of
    the variance of one example's, so the squares of larger batches are multiplied by b.
    """
    total, batches = [torch.zeros_like(weight) for weight in weights], 0
    for loss, size in losses:
        [gradients] = loss_gradients([loss], weights)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += size * gradient.square()
        batches += 1
    return [sum_ / batches for sum_ in total]
