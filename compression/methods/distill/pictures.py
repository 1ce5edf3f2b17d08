"""What a teacher knows and what its student made of it, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from compression.context import Context
from compression.figures import AFTER, BEFORE, FAINT, canvas, styled
from compression.tasks.task import forward

EXAMPLES, CLASSES = 4, 10  # shown at most


@torch.no_grad()
def keep_softened(context: Context, teachers: Sequence[nn.Module], student: nn.Module, temperature: float) -> None:
    """The figure `softened`: the models' answers to a few validation examples; nothing for a regression."""
    task = context.task
    if task.outputs == 1:
        return
    few = task.validation.take(torch.arange(min(EXAMPLES, len(task.validation)))).to(context.device)
    [(inputs, targets)] = few.batches(EXAMPLES)
    *known, answer = (forward(model, inputs).float().cpu() for model in (*teachers, student))
    labels = task.labels or [str(i) for i in range(task.outputs)]
    titles = [labels[i] for i in targets.tolist()]
    context.record.figure("softened", softened(torch.stack(known), answer, temperature, labels, titles))


@styled
def softened(known: Tensor, answer: Tensor, temperature: float, labels: Sequence[str], titles: Sequence[str]) -> Figure:
    """Softened outputs of teachers (their mean) and a student over the teachers' plain ones.

    Logits `(teachers, examples, classes)` and `(examples, classes)`; `titles` are the true classes. Shown are the
    classes that the teachers find likeliest, in the order of the labels.
    """
    figure, axes = canvas(len(titles), width=2.6 * len(titles) + 1, height=3.4)
    plain, soft = known.softmax(2).mean(0), (known / temperature).softmax(2).mean(0)
    bars = {
        "teacher, as it answers": (plain, 0.0, 0.9, FAINT),
        f"teacher at T = {temperature:g}": (soft, -0.2, 0.38, BEFORE),
        f"student at T = {temperature:g}": ((answer / temperature).softmax(1), 0.2, 0.38, AFTER),
    }
    for number, (place, title) in enumerate(zip(axes, titles, strict=True)):
        shown = plain[number].topk(min(CLASSES, plain.shape[1])).indices.sort().values
        rows = np.arange(len(shown))
        for label, (values, offset, height, colour) in bars.items():
            place.barh(rows + offset, values[number, shown].numpy(), height=height, color=colour, label=label)
        place.set_yticks(rows, [labels[i] for i in shown.tolist()], fontsize=8)
        place.invert_yaxis()
        place.set(title=title, xlim=(0, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
