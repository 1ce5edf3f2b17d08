"""Quality and size of the models between a teacher and its student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression.nn.layers import count_parameters
from compression.reporting.figures.distill import quality_against_parameters
from compression.tasks.task import evaluate

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context


class Progression:
    """The models of a progressive distillation from teacher to student, with parameters and validation metric."""

    def __init__(self, context: Context) -> None:
        self.context, self.metric = context, f"val_{context.task.metric}"
        self.points: list[dict[str, Any]] = []  # {model, params, val_<metric>}

    def add(self, name: str, model: nn.Module, params: int | None = None) -> None:
        """Measure `model`, which is in eval mode; `params` replaces the count of its own parameters."""
        task = self.context.task
        quality = evaluate(model, task.validation.to(self.context.device), task)[task.metric]
        size = count_parameters(model) if params is None else params
        self.points.append({"model": name, "params": size, self.metric: quality})

    def record(self) -> None:
        """Record the table and the figure `chain`."""
        self.context.record.table("chain", self.points)
        self.context.record.figure("chain", quality_against_parameters(self.points, self.metric))
