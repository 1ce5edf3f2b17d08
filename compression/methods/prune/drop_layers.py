"""Pruning of a transformer's depth: whole layers are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from compression.methods.base import Method
from compression.methods.prune.masks.example_loss import example_batches
from compression.nn import transformer
from compression.nn.inputs import attention_mask, forward
from compression.params import param
from compression.reporting.figures.prune import dropped_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compression.training.context import Context

ORDERS = ("every_other", "first", "last", "importance")


@dataclass(frozen=True)
class DropLayers(Method):
    """Drop whole layers of a transformer.  Sajjad et al. 2023, arXiv:2004.03844; by importance: Men et al. 2024,
    arXiv:2403.03853, eq. 1.

    `from_pretrained` reads the smaller model: its config has the new number of layers.
    """

    family: ClassVar[str] = "prune"
    needs_finetune: ClassVar[bool] = True
    drops_layers: ClassVar[bool] = True
    requires: ClassVar[str] = "text"

    sparsity: float = param(0.5, "share of the layers to drop", interval="[0, 1)", search=(0.1, 0.75))
    order: str = param(
        "last",
        "layers to drop: evenly spaced, the first, the last, or those that change the hidden states least",
        choices=ORDERS,
        search=ORDERS,
    )
    examples: int = param(256, "importance: training examples whose hidden states are compared", interval="[1, inf)")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Drop layers of `model` in place; at least one stays."""
        model = model.to(context.device)
        total = len(transformer.layers(model))
        count = min(total - 1, round(self.sparsity * total))
        if count != self.sparsity * total:
            context.record.warn(f"{count} of {total} layers are dropped: sparsity={self.sparsity} is no whole number.")
        influence = block_influence(model, self.examples, context) if self.order == "importance" else torch.ones(total)
        dropped = layers_to_drop(self.order, count, influence)
        context.record.figure("dropped-layers", dropped_layers(influence.tolist(), dropped))
        transformer.keep_layers(model, [layer for layer in range(total) if layer not in dropped])
        return model

    def check(self, model: nn.Module, context: Context) -> None:  # noqa: ARG002 - the base's signature
        """Raise UserError for a model that is no transformer."""
        transformer.layers(model)


def layers_to_drop(order: str, count: int, influence: Tensor) -> list[int]:
    """The indices of `count` layers, of those that have an `influence` `(layers,)`.

    Of `every_other`, a half are the 2nd, the 4th, …
    """
    total = len(influence)
    return {
        "every_other": [(i + 1) * total // count - 1 for i in range(count)] if count else [],
        "first": list(range(count)),
        "last": list(range(total - count, total)),
        "importance": influence.argsort(stable=True)[:count].tolist(),
    }[order]


@torch.no_grad()
def block_influence(model: nn.Module, examples: int, context: Context) -> Tensor:
    """How much each layer changes the hidden states, `(layers,)`: 1 - the cosine of its input and its output.

    The mean over the tokens of random training examples, without padding (Men et al. 2024, eq. 1).
    """
    model.eval()
    sums, tokens = torch.zeros(len(transformer.layers(model))), 0
    for inputs, _ in example_batches(context, examples):
        mask = attention_mask(inputs)
        assert mask is not None  # of texts, which transformers take
        with transformer.record_hidden_states(model) as states:
            forward(model, inputs)
        for layer, (before, after) in enumerate(states):
            # Summed over real tokens, divided by their number at the end: texts of other lengths weigh by their tokens.
            sums[layer] += (1 - torch.cosine_similarity(before[mask], after[mask], dim=-1)).sum().item()
        tokens += int(mask.sum())
    return sums / tokens
