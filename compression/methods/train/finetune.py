"""Plain training with the task's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compression import params
from compression.methods.base import Method
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import fit


@dataclass(frozen=True)
class Finetune(Method):
    """Train the model on the task: a baseline from the start, or a compressed model back to its quality.

    Pruned weights stay zero.
    """

    family: ClassVar[str] = "train"

    training: Training = params.group(Training)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return fit(model, context, self.training)
