"""Whole layers of a transformer are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.prune.masks import scores
from compression.nn import transformer
from compression.nn.inputs import forward
from compression.params import param
from compression.reporting.figures.prune import dropped_layers
from compression.training.context import Context

ORDERS = ("every_other", "first", "last", "importance")


@dataclass(frozen=True)
class DropLayers(Method):
    """Drop whole layers of a transformer.  Sajjad et al. 2023, arXiv:2004.03844; by importance: Men et al. 2024,
    arXiv:2403.03853, eq. 1.

    What is left reads with from_pretrained: the config counts the layers.
    """

    family: ClassVar[str] = "prune"
    needs_finetune: ClassVar[bool] = True
    requires: ClassVar[str] = "text"

    sparsity: float = param(0.5, "share of the layers to drop", interval="[0, 1)", search=(0.1, 0.75))
    order: str = param(
        "last",
        "the layers that go: evenly spaced, the first, the last, or those that change the hidden states least",
        choices=ORDERS,
        search=ORDERS,
    )
    examples: int = param(256, "importance: training examples the hidden states are seen on", interval="[1, inf)")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device)
        total = len(transformer.layers(model))
        count = min(total - 1, round(self.sparsity * total))
        if count != self.sparsity * total:
            context.record.warn(f"{count} of {total} layers are dropped: sparsity={self.sparsity} is no whole number.")
        influence = block_influence(model, self.examples, context) if self.order == "importance" else torch.ones(total)
        gone = chosen(self.order, count, influence)
        context.record.figure("dropped-layers", dropped_layers(influence.tolist(), gone))
        transformer.keep_layers(model, [layer for layer in range(total) if layer not in gone])
        return model


def chosen(order: str, count: int, influence: Tensor) -> list[int]:
    """The `count` layers to drop of as many as have an `influence`; every other one: the 2nd, 4th, … for a half."""
    total = len(influence)
    return {
        "every_other": [(i + 1) * total // count - 1 for i in range(count)] if count else [],
        "first": list(range(count)),
        "last": list(range(total - count, total)),
        "importance": influence.argsort(stable=True)[:count].tolist(),
    }[order]


@torch.no_grad()
def block_influence(model: nn.Module, examples: int, context: Context) -> Tensor:
    """How much each layer changes the hidden states, `(layers,)`: 1 - cosine of what goes in and what comes out.

    The mean over the tokens of random training examples, padding left out (Men et al. 2024, eq. 1).
    """
    model.eval()
    sums, tokens = torch.zeros(len(transformer.layers(model))), 0
    for inputs, _ in scores.batches(context, examples):
        assert isinstance(inputs, dict)
        there = inputs["attention_mask"].bool()
        with transformer.record_hidden_states(model) as seen:
            forward(model, inputs)
        for layer, (before, after) in enumerate(seen):
            sums[layer] += (1 - torch.cosine_similarity(before[there], after[there], dim=-1)).sum().item()
        tokens += int(there.sum())
    return sums / tokens
