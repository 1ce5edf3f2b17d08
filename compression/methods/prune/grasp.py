"""GraSP: the weights that the flow of gradients needs stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.prune.masks import amounts, scores
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class Grasp(Method):
    """Prune what least lowers the norm of the gradient, by -weight * (Hessian gradient).  Wang et al. 2020,
    arXiv:2002.07376, eq. 8 and algorithm 1.

    Meant before training (untrained=true, then finetune for as long as a training takes). It keeps a model trainable,
    not right: a trained one must be trained on too.
    """

    family: ClassVar[str] = "prune"
    needs_finetune: ClassVar[bool] = True

    sparsity: float = param(
        0.5, "share of the weights to prune, over all layers", interval="[0, 1)", search=(0.3, 0.98)
    )
    examples: int = param(512, "training examples the gradient is taken on", interval="[1, inf)")
    temperature: float = param(200.0, "softens the logits, so that the loss does not saturate", interval="(0, inf)")
    untrained: bool = param(False, "start over from new random weights: prune before training")

    @property
    def reinitializes(self) -> bool:
        return self.untrained

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = scores.started(model, context, self.untrained)
        copied = scores.differentiable(model, context, batch_statistics=self.untrained)
        weights = scores.weights(copied)
        losses = partial(scores.losses, copied, context, self.examples, self.temperature)
        kept = importance(list(weights.values()), hessian_gradient(losses, list(weights.values())))
        return amounts.prune(model, dict(zip(weights, kept, strict=True)), self.sparsity, context.record)


def hessian_gradient(losses: Callable[[], Iterable[Tensor]], weights: list[Tensor]) -> list[Tensor]:
    """H g of the sum of `losses()`, an iterable of scalars that is asked for twice: for g, then for the product.

    H g = d(g(w) . v)/dw at v = g held fixed, so that no Hessian is built.
    """
    gradient = scores.add_up(scores.gradients(losses(), weights))
    return scores.add_up(_product(loss, weights, gradient) for loss in losses())


def _product(loss: Tensor, weights: list[Tensor], vector: list[Tensor]) -> tuple[Tensor, ...]:
    gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    inner = torch.stack([(g * v).sum() for g, v in zip(gradient, vector, strict=True)]).sum()
    return torch.autograd.grad(inner, weights, materialize_grads=True)


def importance(weights: list[Tensor], hessian_gradient: list[Tensor]) -> list[Tensor]:
    """weight * (H g): how much of the gradient's norm goes with the weight; large is kept.

    The paper's score of a removal is -w Hg, the change that it makes to the norm (halved), and its algorithm 1 prunes
    the highest scores, those whose removal raises the norm or lowers it least: ours is that score negated.
    """
    return [w.detach() * h for w, h in zip(weights, hessian_gradient, strict=True)]
