"""Plain training with the task's own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compression.methods.base import Method
from compression.training.context import Context
from compression.training.loop import Recipe, fit


@dataclass(frozen=True)
class Finetune(Recipe, Method):
    """Train the model on the task: a baseline from the start, or a compressed model back to its quality.

    Pruned weights stay zero.
    """

    family: ClassVar[str] = "train"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return fit(model, context, self)
