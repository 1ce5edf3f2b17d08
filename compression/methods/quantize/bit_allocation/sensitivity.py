"""How sensitive a model is to the rounding of one layer: measured, and by a proxy that needs only gradients."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from compression.nn.gradients import empirical_fisher
from compression.nn.inputs import answers
from compression.tasks.task import Split, Task, answer_batches

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
    scores, loss, count = task.scores(split), 0.0, 0
    for logits, targets in answer_batches(model.eval(), split, task.outputs):
        scores.add(logits, targets)
        loss, count = loss + task.loss(logits, targets).item() * len(targets), count + len(targets)
    return {"loss": loss / count, "quality": scores.metrics()[task.metric]}


def weight_fisher(
    model: nn.Module, layers: Mapping[str, nn.Module], context: Context, samples: int
) -> dict[str, Tensor]:
    """Estimate the diagonal of the empirical Fisher information of each layer's weight on `samples` training examples.

    The results have the shapes of the weights.
    """
    train = context.task.train.to(context.device)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[:samples]
    losses = (
        (context.task.loss(*answers(model.eval(), inputs, targets)), len(targets))
        for inputs, targets in train.select(order).batches(FISHER_BATCH)
    )
    weights = [cast("Tensor", layer.weight) for layer in layers.values()]
    return dict(zip(layers, empirical_fisher(losses, weights), strict=True))
