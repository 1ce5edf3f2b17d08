"""Optimal brain damage: weights whose removal raises the loss least, to second order, are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression.methods.base import Method
from compression.methods.prune.masks.example_loss import differentiable_copy, single_losses
from compression.methods.prune.masks.scores import prunable_weights
from compression.methods.prune.masks.sparsity import prune_by_scores
from compression.nn.gradients import empirical_fisher
from compression.params import param

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        """Mask the weights with the smallest saliencies, over all layers, in place."""
        copied = differentiable_copy(model, context, batch_statistics=False)
        weights = prunable_weights(copied)
        # One example at a time: the square of a batch's mean gradient is not the mean of the squares.
        fisher = empirical_fisher(single_losses(copied, context, self.examples), list(weights.values()))
        scores = {name: saliency(w, h) for (name, w), h in zip(weights.items(), fisher, strict=True)}
        return prune_by_scores(model, scores, self.sparsity, context.record)


def saliency(weight: Tensor, curvature: Tensor) -> Tensor:
    """The rise of the loss, to second order, if a weight becomes zero: h w^2 / 2, in the weight's shape."""
    return curvature * weight.detach().square() / 2
