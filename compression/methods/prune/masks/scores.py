"""What the pruners that score every weight share: examples to score on, a copy to differentiate, masks from scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from compression import models
from compression.errors import UserError
from compression.nn import layers
from compression.nn.inputs import Inputs, forward
from compression.training.context import Context

Scores = dict[str, Tensor]  # layer name -> a score for each weight, in the weight's shape

# The largest batch that is differentiated at once. Gradients add up to the same over batches of any size, up to the
# statistics of batch norms, which want a good many examples.
BATCH = 128


def batches(context: Context, examples: int, size: int = BATCH) -> Iterator[tuple[Inputs, Tensor]]:
    """Random training examples in batches of nearly equal size, at most `size`; no augmentation."""
    split = context.task.train
    generator = torch.Generator().manual_seed(context.seed)
    chosen = torch.randperm(len(split), generator=generator)[:examples]
    parts = math.ceil(len(chosen) / size)
    return split.take(chosen).to(context.device).batches(math.ceil(len(chosen) / parts))


def differentiable(model: nn.Module, context: Context, batch_statistics: bool) -> nn.Module:
    """A copy on the device in which only the prunable weights take gradients, without dropout.

    `batch_statistics`: batch norms normalise by the batch at hand, since those of an untrained model know none.
    """
    copied = copy.deepcopy(model).to(context.device).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_statistics)
    for weight in weights(copied).values():
        weight.requires_grad_(True)
    return copied


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the prunable layers, by the layer's name."""
    return {name: cast(Tensor, module.weight) for name, module in layers.prunable_layers(model).items()}


def losses(model: nn.Module, context: Context, examples: int, temperature: float = 1.0) -> Iterator[Tensor]:
    """Parts, one a batch, that add up to the mean loss over random training examples."""
    total = min(examples, len(context.task.train))
    for inputs, targets in batches(context, examples):
        yield loss_of(model, inputs, targets, context, temperature) * (len(targets) / total)


def loss_of(model: nn.Module, inputs: Inputs, targets: Tensor, context: Context, temperature: float = 1.0) -> Tensor:
    """The task's mean loss; a classifier's logits are divided by `temperature` first."""
    logits = forward(model, inputs)
    return context.task.loss(logits / temperature if context.task.outputs > 1 else logits, targets)


def gradients(losses: Iterable[Tensor], weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The gradient of each loss by the weights; zero where a weight has no part in it."""
    for loss in losses:
        yield torch.autograd.grad(loss, weights, materialize_grads=True)


def add_up(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Sums over the parts, of which only one is held at a time."""
    parts = iter(parts)
    total = [first.clone() for first in next(parts)]
    for part in parts:
        for sum_, more in zip(total, part, strict=True):
            sum_ += more
    return total


def keep_largest(scores: Mapping[str, Tensor], sparsity: float) -> Scores:
    """Masks (bool) that keep the share 1 - `sparsity` of all weights together: those with the largest scores.

    The count is exact whatever the ties: among equal scores the first are kept.
    """
    flat = torch.cat([s.flatten() for s in scores.values()])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    order = flat.sort(descending=True, stable=True).indices
    kept[order[: len(flat) - round(sparsity * len(flat))]] = True
    parts = kept.split([s.numel() for s in scores.values()])
    return {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}


def prune(model: nn.Module, scores: Mapping[str, Tensor], sparsity: float) -> nn.Module:
    """Mask `model` in place where its scores are least; what is pruned already goes first and stays pruned."""
    found = layers.prunable_layers(model)
    for name, module in layers.masked_layers(model).items():
        if name in scores:
            scores[name].masked_fill_(~cast(Tensor, module.mask).to(scores[name].device), -math.inf)
    for name, keep in keep_largest(scores, sparsity).items():
        set_also(found[name], keep)
    return model


def shares(sizes: Sequence[int], sparsity: float) -> Iterator[int]:
    """Whole numbers near `sparsity` times each size, whose sum is as near to that of the whole as can be."""
    total, given = 0, 0
    for size in sizes:
        total += size
        yield (upto := round(total * sparsity)) - given
        given = upto


def set_also(module: nn.Module, keep: Tensor) -> None:
    """Mask the layer by `keep`, and by the mask that it has already."""
    earlier = getattr(module, "mask", None)
    layers.set_mask(module, keep & earlier if isinstance(earlier, Tensor) else keep)


def started(model: nn.Module, context: Context, untrained: bool) -> nn.Module:
    """`model`, or its architecture with new random weights; UserError where those would undo an earlier step."""
    if not untrained:
        return model.to(context.device)
    if context.model_changed:
        raise UserError("untrained=true starts over with new weights, so it must be the first step of the chain.")
    return models.rebuild(models.spec_of(model)).to(context.device)
