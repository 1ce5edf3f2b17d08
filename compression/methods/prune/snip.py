"""SNIP: the weights whose connection the loss feels most stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.prune.masks import amounts, scores
from compression.params import param
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
        return self.untrained

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = scores.started(model, context, self.untrained)
        found = sensitivity(*self.gradients(model, context))
        return amounts.prune(model, found, self.sparsity, context.record)

    def gradients(self, model: nn.Module, context: Context) -> tuple[scores.Scores, scores.Scores]:
        """The prunable weights and the gradient of the mean loss over the examples, by layer."""
        copied = scores.differentiable(model, context, batch_statistics=self.untrained)
        weights = scores.weights(copied)
        losses = scores.losses(copied, context, self.examples)
        gradient = scores.add_up(scores.gradients(losses, list(weights.values())))
        return {name: w.detach() for name, w in weights.items()}, dict(zip(weights, gradient, strict=True))


def sensitivity(weights: dict[str, Tensor], gradient: dict[str, Tensor]) -> scores.Scores:
    """|g w| over its sum over all layers: eq. 5, with eq. 4's derivative by the connection, dL/dc = g w at c = 1."""
    felt = {name: (gradient[name] * w).abs() for name, w in weights.items()}
    total = torch.stack([f.sum() for f in felt.values()]).sum().clamp_min(torch.finfo(torch.float32).tiny)
    return {name: f / total for name, f in felt.items()}
