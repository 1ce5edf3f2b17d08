"""SNIP: the weights whose connections affect the loss most are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from compression.methods.base import Method
from compression.methods.prune.masks.example_loss import batch_losses, differentiable_copy, starting_model
from compression.methods.prune.masks.scores import Scores, prunable_weights
from compression.methods.prune.masks.sparsity import prune_by_scores
from compression.nn.gradients import loss_gradients, sum_tensors
from compression.params import param

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compression.training.context import Context


@dataclass(frozen=True)
class Snip(Method):
    """Prune by connection sensitivity, |gradient * weight| on some examples.  Lee et al. 2019, arXiv:1810.02340.

    Meant before training (untrained=true, then finetune for as long as a training takes); works on a trained model
    too.
    """

    family: ClassVar[str] = "prune"

    sparsity: float = param(
        0.5, "share of the weights to prune, over all layers", interval="[0, 1)", search=(0.3, 0.98)
    )
    examples: int = param(512, "training examples the gradient is taken on", interval="[1, inf)")
    untrained: bool = param(False, "start over from new random weights: prune before training")

    @property
    def reinitializes(self) -> bool:
        """`untrained` starts from new random weights."""
        return self.untrained

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Mask the weights with the smallest sensitivities, over all layers, in place."""
        model = starting_model(model, context, self.untrained)
        scores = sensitivity(*self.weights_and_gradients(model, context))
        return prune_by_scores(model, scores, self.sparsity, context.record)

    def weights_and_gradients(self, model: nn.Module, context: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The prunable weights, and the gradient of the mean loss over the examples, by layer."""
        copied = differentiable_copy(model, context, batch_statistics=self.untrained)
        weights = prunable_weights(copied)
        losses = batch_losses(copied, context, self.examples)
        gradient = sum_tensors(loss_gradients(losses, list(weights.values())))
        return {name: w.detach() for name, w in weights.items()}, dict(zip(weights, gradient, strict=True))


def sensitivity(weights: dict[str, Tensor], gradient: dict[str, Tensor]) -> Scores:
    """|g w| over its sum over all layers: eq. 5, with eq. 4's derivative by the connection, dL/dc = g w at c = 1."""
    products = {name: (gradient[name] * w).abs() for name, w in weights.items()}
    # The division changes no ranking; it makes the scores those of eq. 5. Without any gradient it must not be 0 / 0.
    total = torch.stack([p.sum() for p in products.values()]).sum().clamp_min(torch.finfo(torch.float32).tiny)
    return {name: p / total for name, p in products.items()}
