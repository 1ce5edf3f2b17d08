"""Plain training with the task's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression.methods.base import Method
from compression.params import group
from compression.training.hyperparameters import Training
from compression.training.loop import fit

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context


@dataclass(frozen=True)
class Finetune(Method):
    """Train the model on the task: a baseline from the start, or a compressed model back to its quality.

    Pruned weights stay zero.
    """

    family: ClassVar[str] = "train"

    training: Training = group(Training)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the model in place."""
        return fit(model, context, self.training)
