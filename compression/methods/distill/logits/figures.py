"""The figure of a distillation on logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compression.nn.inputs import answers
from compression.reporting.figures.distill import softened_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.training.context import Context

EXAMPLES = 4


@torch.no_grad()
def log_softened_outputs(
    context: Context, teachers: Sequence[nn.Module], student: nn.Module, temperature: float
) -> None:
    """Record the figure `softened`: outputs for the first validation examples; nothing for numbers and for tokens."""
    task = context.task
    if task.outputs == 1 or task.predicts_tokens:
        return
    few = task.validation.select(torch.arange(min(EXAMPLES, len(task.validation)))).to(context.device)
    [(inputs, targets)] = few.batches(EXAMPLES)
    *of_teachers, of_student = (answers(model, inputs, targets)[0].float().cpu() for model in (*teachers, student))
    labels = task.labels or [str(i) for i in range(task.outputs)]
    titles = [labels[i] for i in targets.tolist()]
    plain = torch.stack([logits.softmax(1) for logits in of_teachers]).mean(0).numpy()
    soft = torch.stack([(logits / temperature).softmax(1) for logits in of_teachers]).mean(0).numpy()
    own = (of_student / temperature).softmax(1).numpy()
    context.record.figure("softened", softened_outputs(plain, soft, own, temperature, labels, titles))
