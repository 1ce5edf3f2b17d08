"""GraSP: the weights that preserve the flow of gradients are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from compression.methods.base import Method
from compression.methods.prune.masks.example_loss import batch_losses, differentiable_copy, starting_model
from compression.methods.prune.masks.scores import prunable_weights
from compression.methods.prune.masks.sparsity import prune_by_scores
from compression.nn.gradients import loss_gradients, sum_tensors
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from compression.training.context import Context


@dataclass(frozen=True)
class Grasp(Method):
    """Prune what least lowers the norm of the gradient, by -weight * (Hessian gradient).  Wang et al. 2020,
    arXiv:2002.07376, eq. 8 and algorithm 1.

    Meant before training (untrained=true, then finetune for as long as a training takes). The score keeps a model
    trainable, it does not keep its predictions: a trained model, too, must be trained on afterwards.
    """

    family: ClassVar[str] = "prune"
    needs_finetune: ClassVar[bool] = True

    sparsity: float = param(
        0.5, "share of the weights to prune, over all layers", interval="[0, 1)", search=(0.3, 0.98)
    )
    examples: int = param(512, "training examples the gradient is taken on", interval="[1, inf)")
    # 200 as in the authors' code
    temperature: float = param(200.0, "softens the logits, so that the loss does not saturate", interval="[0.01, 1e4]")
    untrained: bool = param(False, "start over from new random weights: prune before training")

    @property
    def reinitializes(self) -> bool:
        """`untrained` starts from new random weights."""
        return self.untrained

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Mask the weights with the smallest scores, over all layers, in place."""
        model = starting_model(model, context, self.untrained)
        copied = differentiable_copy(model, context, batch_statistics=self.untrained)
        weights = prunable_weights(copied)
        losses = partial(batch_losses, copied, context, self.examples, self.temperature)
        products = hessian_gradient_product(losses, list(weights.values()))
        scores = {name: grasp_scores(w, hg) for (name, w), hg in zip(weights.items(), products, strict=True)}
        return prune_by_scores(model, scores, self.sparsity, context.record)


def hessian_gradient_product(losses: Callable[[], Iterable[Tensor]], weights: list[Tensor]) -> list[Tensor]:
    """H g of the sum of `losses()`, in the weights' shapes; the iterable of scalars is asked for twice.

    H g = d(g(w) . v)/dw at v = g held fixed, so that no Hessian is built.
    """
    fixed = sum_tensors(loss_gradients(losses(), weights))

    def products() -> Iterator[tuple[Tensor, ...]]:
        for loss in losses():
            # d(g_batch . v)/dw summed over batches is H v of them all, with one batch's double graph in memory.
            gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            inner = torch.stack([(g * v).sum() for g, v in zip(gradient, fixed, strict=True)]).sum()
            yield torch.autograd.grad(inner, weights, materialize_grads=True)

    return sum_tensors(products())


def grasp_scores(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """The score w (H g): how much of the gradient's norm depends on the weight; large scores are kept.

    The paper's score of a removal is -w Hg, the change that it makes to half the squared norm, and its algorithm 1
    prunes the highest scores, those whose removal raises the norm or lowers it least: this is that score negated.
    """
    return weight.detach() * hessian_gradient
