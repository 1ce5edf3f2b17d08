"""The hyperparameters of a training, a field each. A method that trains holds them: `training: Training = …`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compression.errors import UserError
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Training:
    """How to train. A field of None is left to the task: `resolved` fills it in."""

    epochs: int | None = param(None, "passes over the training data", interval="[0, inf)")
    batch_size: int | None = param(None, "examples per optimizer step", interval="[1, inf)")
    learning_rate: float | None = param(None, "peak learning rate", interval="(0, 1e6]", search=(1e-4, 0.5), log=True)
    optimizer: str | None = param(None, "sgd (Nesterov momentum 0.9) or adamw", choices=("sgd", "adamw"))
    schedule: str | None = param(None, "learning rate schedule", choices=("onecycle", "cosine", "linear", "constant"))
    warmup: float | None = param(None, "share of the steps spent warming up", interval="[0, 1)")
    weight_decay: float | None = param(None, "weight decay, not applied to norms and biases", interval="[0, 1e6]")
    label_smoothing: float | None = param(None, "share of the target spread over all classes", interval="[0, 1)")
    clip: float = param(0.0, "largest norm of the gradient; 0 = no clipping", interval="[0, inf)")
    augment: bool = param(True, "augment the training data, where the task does")
    views: int = param(
        0, "number of distinct augmented epochs to cycle through; 0 = fresh every epoch", interval="[0, inf)"
    )
    cutout: int = param(0, "side of the square cut out of each training image, in pixels", interval="[0, inf)")
    keep: str = param("best", "weights to keep: of the best validation epoch, or the last", choices=("best", "last"))

    def resolved(self, defaults: Mapping[str, Any]) -> Training:
        """Fill every unset field in from `defaults`, field name -> value."""
        unset = [name for name in defaults if getattr(self, name, 0) is None]
        return replace(self, **{name: defaults[name] for name in unset})

    def augmentation_seed(self, epoch: int) -> int:
        """The first epoch with the order and augmentation of `epoch` (both from 0)."""
        return epoch % self.views if self.views else epoch


def require_training(training: Training, defaults: Mapping[str, Any], purpose: str) -> None:
    """Raise UserError if there are no epochs, where `purpose`, the beginning of a sentence, needs a training."""
    if training.resolved(defaults).epochs == 0:
        raise UserError(f"{purpose} in a training, and epochs=0 is none; take 1 or more.")
