"""Optimal brain damage: the weights that the loss is flattest along go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.prune.masks import amounts, scores
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class Obd(Method):
    """Prune by the saliency h w^2 / 2, with h from the diagonal of the Fisher matrix.  LeCun et al. 1990, "Optimal
    brain damage", eq. 5.

    h is the mean over examples of the squared gradient of each single example (the empirical Fisher, at the true
    labels), which stands for the diagonal of the Hessian at a minimum of the loss: train the model first.
    """

    family: ClassVar[str] = "prune"

    sparsity: float = param(
        0.5, "share of the weights to prune, over all layers", interval="[0, 1)", search=(0.3, 0.95)
    )
    examples: int = param(256, "training examples, each differentiated on its own", interval="[1, inf)")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        copied = scores.differentiable(model, context, batch_statistics=False)
        weights = scores.weights(copied)
        count = min(self.examples, len(context.task.train))
        one_by_one = (
            scores.loss_of(copied, inputs, targets, context)
            for inputs, targets in scores.batches(context, count, size=1)
        )
        curvature = fisher(one_by_one, list(weights.values()), count)
        found = saliency(list(weights.values()), curvature)
        return amounts.prune(model, dict(zip(weights, found, strict=True)), self.sparsity, context.record)


def fisher(losses: Iterable[Tensor], weights: Sequence[Tensor], examples: int) -> list[Tensor]:
    """The mean of the squared gradients of `losses`, one loss for each of the `examples`."""
    squares = ([g.square() for g in found] for found in scores.gradients(losses, weights))
    return [total / examples for total in scores.add_up(squares)]


def saliency(weights: list[Tensor], curvature: list[Tensor]) -> list[Tensor]:
    """h w^2 / 2: what the loss rises by, to second order, when the weight goes."""
    return [h * w.detach().square() / 2 for w, h in zip(weights, curvature, strict=True)]
