"""The loss of a model on random training examples, set up so that it can be differentiated by the prunable weights."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression import models
from compression.errors import UserError
from compression.methods.prune.masks.scores import prunable_weights
from compression.nn.inputs import Inputs, answers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compression.training.context import Context

# The largest batch that is differentiated at once. Gradients add up to the same over batches of any size, except for
# the statistics of batch norms, which need this many examples to be stable.
BATCH = 128


def example_batches(context: Context, examples: int, size: int = BATCH) -> Iterator[tuple[Inputs, Tensor]]:
    """Random training examples (all, if there are fewer), not augmented, in even batches of at most `size`."""
    split = context.task.train
    generator = torch.Generator().manual_seed(context.seed)
    chosen = torch.randperm(len(split), generator=generator)[:examples]
    # Even: 129 examples are 65 and 64, not 128 and 1, which batch norms could not normalise by its own statistics.
    batches = math.ceil(len(chosen) / size)
    return split.select(chosen).to(context.device).batches(math.ceil(len(chosen) / batches))


def differentiable_copy(model: nn.Module, context: Context, batch_statistics: bool) -> nn.Module:
    """Copy the model to the device, without dropout, so that only the prunable weights take gradients.

    With `batch_statistics`, batch norms normalise by the batch at hand: an untrained model has no running statistics.
    """
    # A copy, for the model itself must keep its gradients, its running statistics, and which parameters train.
    copied = copy.deepcopy(model).to(context.device).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_statistics)
    for weight in prunable_weights(copied).values():
        weight.requires_grad_(True)
    return copied


def batch_losses(model: nn.Module, context: Context, examples: int, temperature: float = 1.0) -> Iterator[Tensor]:
    """Yield a scalar for each batch of `example_batches`; they add up to the mean loss over the examples."""
    total = min(examples, len(context.task.train))
    for inputs, targets in example_batches(context, examples):
        yield mean_loss(model, inputs, targets, context, temperature) * (len(targets) / total)


def single_losses(model: nn.Module, context: Context, examples: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the loss of each example and 1, its batch's size, for `empirical_fisher`."""
    for inputs, targets in example_batches(context, examples, size=1):
        yield mean_loss(model, inputs, targets, context), 1


def mean_loss(model: nn.Module, inputs: Inputs, targets: Tensor, context: Context, temperature: float = 1.0) -> Tensor:
    """The task's mean loss over a batch; a classifier's logits are divided by `temperature` first."""
    logits, wanted = answers(model, inputs, targets)
    return context.task.loss(logits / temperature if context.task.outputs > 1 else logits, wanted)


def starting_model(model: nn.Module, context: Context, untrained: bool) -> nn.Module:
    """`model` itself on the device or, with `untrained`, its architecture with new random weights.

    Raises UserError where new weights would undo an earlier step.
    """
    if not untrained:
        return model.to(context.device)
    if context.model_changed:
        raise UserError("untrained=true starts over with new weights, so it must be the first step of the chain.")
    return models.rebuild(models.spec_of(model)).to(context.device)
