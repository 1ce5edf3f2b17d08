"""Quality against size along a chain of models."""

from __future__ import annotations

from typing import Any

from torch import nn

from compression.nn.layers import count_parameters
from compression.reporting.figures.distill import quality_against_parameters
from compression.tasks.task import evaluate
from compression.training.context import Context


class Chain:
    """The models that a distillation passes through, each with its parameters and its validation metric."""

    def __init__(self, context: Context) -> None:
        self.context, self.metric = context, f"val_{context.task.metric}"
        self.points: list[dict[str, Any]] = []

    def add(self, name: str, model: nn.Module, params: int | None = None) -> None:
        """Measure `model`, which is in eval mode; `params` are its own unless given."""
        task = self.context.task
        quality = evaluate(model, task.validation.to(self.context.device), task)[task.metric]
        size = count_parameters(model) if params is None else params
        self.points.append({"model": name, "params": size, self.metric: quality})

    def keep(self) -> None:
        """Leave the table and the figure `chain`."""
        self.context.record.table("chain", self.points)
        self.context.record.figure("chain", quality_against_parameters(self.points, self.metric))
