"""What a teacher knows and what its student made of it, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from compression.methods.distill.layers.features import Pairs, captured, there
from compression.methods.distill.layers.heads import Parts, relations
from compression.nn import transformer
from compression.nn.inputs import Inputs, forward
from compression.reporting.figures import AFTER, BEFORE, FAINT, SHADES, canvas, styled
from compression.training.context import Context

EXAMPLES, CLASSES, PAIRS = 4, 10, 3  # shown at most


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


@torch.no_grad()
def keep_features(context: Context, teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    """The figure `features`: what pairs of layers make of the first validation example, side by side.

    Of an image's layers the strength at each place, of a transformer's the attention; nothing for other outputs.
    """
    one = context.task.validation.take(torch.tensor([0])).to(context.device)
    [(inputs, _)] = one.batches(1)
    look = attention_map if transformer.is_transformer(teacher) else strength_map
    maps: dict[str, Tensor | None] = {}
    for theirs, ours in pairs[-PAIRS:]:
        maps[f"teacher\n{theirs}"] = look(teacher, theirs, inputs)
        maps[f"student\n{ours}"] = look(student, ours, inputs)
    shown = {title: found.float().cpu() for title, found in maps.items() if found is not None}
    if shown:
        pixels = {"image": one.inputs[0].cpu()} if isinstance(one.inputs, Tensor) else {}
        context.record.figure("features", side_by_side(pixels | shown))


def strength_map(model: nn.Module, layer: str, inputs: Inputs) -> Tensor | None:
    """Root mean square over the channels that `layer` gives for one image, `(height, width)`; None if it gives none."""
    with captured(model, [layer]) as seen:
        forward(model, inputs)
    return seen[layer][0].square().mean(0).sqrt() if seen[layer].ndim == 4 else None


def attention_map(model: nn.Module, layer: str, inputs: Inputs) -> Tensor | None:
    """Attention of a layer for one text, `(tokens, tokens)`, the mean of its heads; None where it has none."""
    parts, tokens = Parts(model), there(inputs)
    if layer not in parts.heads or tokens is None:
        return None
    query, key, _ = parts.of(layer)
    with captured(model, [query, key]) as seen:
        forward(model, inputs)
    found = relations(seen[query], seen[key], parts.heads[layer], tokens).exp()[0].mean(0)
    return found[tokens[0]][:, tokens[0]]


@styled
def side_by_side(maps: dict[str, Tensor]) -> Figure:
    """Maps `(height, width)`, or images `(channels, height, width)`, in a row under their titles."""
    figure, axes = canvas(len(maps), width=1.9 * len(maps), height=2.4)
    for place, (title, found) in zip(axes, maps.items(), strict=True):
        pixels = found.permute(1, 2, 0) if found.ndim == 3 else found
        place.imshow(pixels.numpy(), cmap=SHADES)
        place.set_title(title, fontsize=8)
        place.set_axis_off()
    return figure
