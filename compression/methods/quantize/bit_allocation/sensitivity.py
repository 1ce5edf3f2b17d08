"""How sensitive a model is to the rounding of one layer: measured, and by a proxy that needs only gradients."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from compression.nn.inputs import forward
from compression.tasks.task import Split, Task, predict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from compression.training.context import Context

FISHER_BATCH = 8  # examples to a gradient: larger is faster, and has a larger variance


@contextmanager
def temporary_weight(layer: nn.Module, values: Tensor) -> Iterator[None]:
    """Give the layer the weight `values` as long as the block lasts."""
    weight = cast("Tensor", layer.weight)
    original = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(original)


def loss_and_quality(model: nn.Module, split: Split, task: Task) -> dict[str, float]:
    """The model's mean loss on the examples of `split`, and its value of the task's metric."""
    logits, targets = predict(model.eval(), split)
    return {"loss": task.loss(logits, targets).item(), "quality": task.metrics(logits, targets)[task.metric]}


def empirical_fisher(
    model: nn.Module, layers: Mapping[str, nn.Module], context: Context, samples: int
) -> dict[str, Tensor]:
    """Estimate the diagonal of the empirical Fisher information of each layer's weight, in the weight's shape.

    The mean squared gradient over small batches of `samples` training examples, times the size of a batch: the
    gradient of a mean over b independent examples has 1/b of the variance of one example's.
    """
    weights = {name: cast("Tensor", layer.weight) for name, layer in layers.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    train = context.task.train.to(context.device)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[:samples]
    batches = 0
    for inputs, targets in train.take(order).batches(FISHER_BATCH):
        loss = context.task.loss(forward(model.eval(), inputs), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for accumulated, gradient in zip(total.values(), gradients, strict=True):
            accumulated += len(targets) * gradient.square()
        batches += 1
    return {name: accumulated / batches for name, accumulated in total.items()}
