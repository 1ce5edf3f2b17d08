"""Trainings that end in numbers that are not finite, told with their cause."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tasks.scores import Scores
    from compression.tasks.task import Split
    from compression.training.hyperparameters import Training

LARGEST_DECAY = 2.0  # |1 - learning rate x weight decay|, by which each step multiplies a weight, is above 1 beyond it
LARGEST_START = 1e4  # a loss before any update: cross-entropy of 1,000 classes begins at 7, wrong and sure of it at 100
ADVICE = "try a lower learning_rate, clip=1 or precision=no"


def require_finite_start(model: nn.Module, data: Split) -> None:
    """Raise UserError if a weight of `model`, an input or a target is not finite: no training mends that."""
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            raise UserError(f"The weights of {name} are not finite before the training: start from another model.")
    inputs = data.inputs if isinstance(data.inputs, dict) else {"inputs": data.inputs}
    for name, tensor in {**inputs, "targets": data.targets}.items():
        if not _is_finite(tensor):
            raise UserError(f"The {name} of the training data are not all finite: mend or leave out those examples.")


def require_finite_losses(losses: Sequence[Tensor], before: int, training: Training, rate: float, kept: str) -> None:
    """Raise UserError at the first loss that is not finite; `before` steps came before `losses`.

    `rate` is the learning rate, and `kept` a sentence on the checkpoint.
    """
    values = torch.stack(list(losses)).tolist()  # one transfer from the device, not one a loss
    first = next((number for number, value in enumerate(values) if not math.isfinite(value)), None)
    if first is None:
        return
    if before + first == 0:
        cause = (
            ", before any update, so the learning rate is not the cause: a temperature or a weight in the method's "
            "loss is too large or too small, or the numbers overflow in half precision (precision=no)"
        )
    elif before == 0 and values[0] > LARGEST_START:
        cause = (
            f", and it was {values[0]:.3g} before any update, so the learning rate is not the cause: a temperature or "
            "a weight in the method's loss is too large, or the targets are numbers far from 1"
        )
    else:
        last = f", a loss of {values[first - 1]:.3g} before it" if first else ""
        cause = f" (learning rate {rate:.3g}{last}): {advice(training)}"
    raise UserError(f"The loss is not finite at step {before + first + 1}{cause}. {kept}".strip())


def require_finite_outputs(scores: Scores, epoch: int, training: Training, rate: float, kept: str) -> None:
    """Raise UserError if a logit is not finite after `epoch` epochs, whose losses all were."""
    if not scores.are_finite:
        raise UserError(
            f"The model's outputs are not finite after epoch {epoch} (learning rate {rate:.3g}): {advice(training)}. "
            f"{kept}".strip()
        )


def advice(training: Training) -> str:
    """What to change about a training that diverges."""
    decay = (training.learning_rate or 0.0) * (training.weight_decay or 0.0)
    if decay > LARGEST_DECAY:
        return (
            f"learning_rate x weight_decay is {decay:.3g}, and above {LARGEST_DECAY:g} the decay itself makes weights "
            "grow; lower one of them"
        )
    return ADVICE


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
