"""What a teacher knows and what its student made of it, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compression.methods.distill.layers.features import Pairs, captured, there
from compression.methods.distill.layers.heads import Parts, relations
from compression.nn import transformer
from compression.nn.inputs import Inputs, forward
from compression.reporting.figures.distill import feature_maps, softened_outputs
from compression.training.context import Context

EXAMPLES, PAIRS = 4, 3  # shown at most


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
    plain = torch.stack([logits.softmax(1) for logits in known]).mean(0).numpy()
    soft = torch.stack([(logits / temperature).softmax(1) for logits in known]).mean(0).numpy()
    own = (answer / temperature).softmax(1).numpy()
    context.record.figure("softened", softened_outputs(plain, soft, own, temperature, labels, titles))


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
    shown = {title: found.float().cpu().numpy() for title, found in maps.items() if found is not None}
    if shown:
        pixels = {"image": one.inputs[0].cpu().numpy()} if isinstance(one.inputs, Tensor) else {}
        context.record.figure("features", feature_maps(pixels | shown))


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
