"""Quality against size along a chain of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from torch import nn

from compression.nn.layers import count_parameters
from compression.reporting.figures import AFTER, BEFORE, INK, canvas, styled
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
        self.context.record.figure("chain", curve(self.points, self.metric))


@styled
def curve(points: Sequence[dict[str, Any]], metric: str) -> Figure:
    """Quality against parameters; a point is {model, params, <metric>}, the first the teacher."""
    figure, [axes] = canvas()
    sizes, qualities = ([point[key] for point in points] for key in ("params", metric))
    axes.plot(sizes, qualities, color=AFTER, zorder=2)
    axes.scatter(sizes, qualities, s=60, color=[BEFORE, *[AFTER] * (len(points) - 1)], zorder=3)
    for point in points:
        place = point["params"], point[metric]
        axes.annotate(point["model"], place, (6, 6), textcoords="offset points", color=INK, fontsize=8)
    axes.set(xlabel="parameters", ylabel=metric.replace("_", " "), title="From the teacher to the student")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(0.2)
    axes.set_xlim(left=0)
    return figure
