"""What a teacher knows and what its student made of it, as pictures."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from compression.context import Context
from compression.figures import AFTER, BEFORE, FAINT, canvas, styled
from compression.tasks.task import forward

EXAMPLES, CLASSES = 4, 10  # shown at most


@torch.no_grad()
def keep_softened(context: Context, teacher: nn.Module, student: nn.Module, temperature: float) -> None:
    """The figure `softened`: both models' answers to a few validation examples; nothing for a regression."""
    task = context.task
    if task.outputs == 1:
        return
    few = task.validation.take(torch.arange(min(EXAMPLES, len(task.validation)))).to(context.device)
    [(inputs, targets)] = few.batches(EXAMPLES)
    known, answer = (forward(model, inputs).float().cpu() for model in (teacher, student))
    labels = task.labels or [str(i) for i in range(task.outputs)]
    titles = [labels[i] for i in targets.tolist()]
    context.record.figure("softened", softened(known, answer, temperature, list(labels), titles))


@styled
def softened(known: Tensor, answer: Tensor, temperature: float, labels: list[str], titles: list[str]) -> Figure:
    """A teacher's and a student's softened outputs, from logits `(examples, classes)`, over the teacher's plain ones.

    The classes that the teacher finds likeliest, in their order; `titles` are the true classes.
    """
    figure, axes = canvas(len(titles), width=2.6 * len(titles) + 1, height=3.4)
    for place, one, other, title in zip(axes, known, answer, titles, strict=True):
        shown = one.topk(min(CLASSES, len(one))).indices.sort().values
        rows = np.arange(len(shown))
        plain, soft, learned = (x.softmax(0)[shown].numpy() for x in (one, one / temperature, other / temperature))
        place.barh(rows, plain, height=0.9, color=FAINT, label="teacher, as it answers")
        place.barh(rows - 0.2, soft, height=0.38, color=BEFORE, label=f"teacher at T = {temperature:g}")
        place.barh(rows + 0.2, learned, height=0.38, color=AFTER, label=f"student at T = {temperature:g}")
        place.set_yticks(rows, [labels[i] for i in shown.tolist()], fontsize=8)
        place.invert_yaxis()
        place.set(title=title, xlim=(0, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
