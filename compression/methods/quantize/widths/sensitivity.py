"""What rounding one layer does to the whole model: its loss, its quality, and a proxy that needs gradients alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from compression.nn.inputs import forward
from compression.nn.quantized import QParams, dequantize, merge_groups, quantize, split_groups
from compression.tasks.task import Split, Task, predict
from compression.training.context import Context


def rounded(values: Tensor, numbers: QParams) -> Tensor:
    """`values` at the nearest levels of `numbers`."""
    scale, zero_point = numbers.scale.unsqueeze(2), numbers.zero_point.unsqueeze(2)
    codes = quantize(
        split_groups(values, numbers.granularity, numbers.group_size), scale, zero_point, numbers.low, numbers.high
    )
    return merge_groups(dequantize(codes, scale, zero_point), values.shape)


@contextmanager
def replaced(layer: nn.Module, values: Tensor) -> Iterator[None]:
    """Have `values` for the layer's weight as long as this lasts."""
    held = cast(Tensor, layer.weight)
    before = held.detach().clone()
    with torch.no_grad():
        held.copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            held.copy_(before)


def judged(model: nn.Module, some: Split, task: Task) -> dict[str, float]:
    """Loss and quality of the model on `some` examples."""
    logits, targets = predict(model.eval(), some)
    return {"loss": task.loss(logits, targets).item(), "quality": task.metrics(logits, targets)[task.metric]}


def fisher(model: nn.Module, layers: dict[str, nn.Module], context: Context, samples: int) -> dict[str, Tensor]:
    """Mean squared gradient of each weight over small batches of training examples, times a batch's size.

    The gradient of a mean over b independent examples has 1/b of the variance of one example's.
    """
    weights = {name: cast(Tensor, layer.weight) for name, layer in layers.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    train, size = context.task.train.to(context.device), 8
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[:samples]
    parts = 0
    for inputs, targets in train.take(order).batches(size):
        loss = context.task.loss(forward(model.eval(), inputs), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for sum_, gradient in zip(total.values(), gradients, strict=True):
            sum_ += len(targets) * gradient.square()
        parts += 1
    return {name: sum_ / parts for name, sum_ in total.items()}
