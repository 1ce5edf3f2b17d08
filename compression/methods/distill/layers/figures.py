"""The figure of a distillation on layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.methods.distill.layers.features import LayerPairs, record_outputs
from compression.methods.distill.layers.heads import AttentionProjections, log_relations
from compression.nn import transformer
from compression.nn.inputs import Inputs, attention_mask, forward
from compression.reporting.figures.distill import feature_maps

if TYPE_CHECKING:
    from compression.training.context import Context

MOST_PAIRS = 3  # the last ones


@torch.no_grad()
def log_feature_maps(context: Context, teacher: nn.Module, student: nn.Module, pairs: LayerPairs) -> None:
    """Record the figure `features`: both layers of each pair for the first validation example, side by side.

    Layers of a CNN as their activation at each pixel, those of an encoder as their attention; others are left out.
    """
    example = context.task.validation.select(torch.tensor([0])).to(context.device)
    [(inputs, _)] = example.batches(1)
    map_of = attention_map if transformer.is_encoder(teacher) else activation_map
    maps: dict[str, Tensor | None] = {}
    for of_teacher, of_student in pairs[-MOST_PAIRS:]:
        maps[f"teacher\n{of_teacher}"] = map_of(teacher, of_teacher, inputs)
        maps[f"student\n{of_student}"] = map_of(student, of_student, inputs)
    drawn = {title: values.float().cpu().numpy() for title, values in maps.items() if values is not None}
    if drawn:
        image = {"image": example.inputs[0].cpu().numpy()} if isinstance(example.inputs, Tensor) else {}
        context.record.figure("features", feature_maps(image | drawn))


def activation_map(model: nn.Module, layer: str, inputs: Inputs) -> Tensor | None:
    """Root mean square over the channels of a layer's output for one image, `(height, width)`; None for vectors."""
    with record_outputs(model, [layer]) as outputs:
        forward(model, inputs)
    return outputs[layer][0].square().mean(0).sqrt() if outputs[layer].ndim == 4 else None


def attention_map(model: nn.Module, layer: str, inputs: Inputs) -> Tensor | None:
    """Mean over the heads of a layer's attention for one text, `(tokens, tokens)`; None for layers without it."""
    projections, mask = AttentionProjections(model), attention_mask(inputs)
    if layer not in projections.heads or mask is None:
        return None
    query, key, _ = projections.names(layer)
    with record_outputs(model, [query, key]) as outputs:
        forward(model, inputs)
    attention = log_relations(outputs[query], outputs[key], projections.heads[layer], mask).exp()[0].mean(0)
    return attention[mask[0]][:, mask[0]]  # without padding
