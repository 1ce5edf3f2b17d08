"""Attention of a transformer's layers, recomputed from what their projections give: without dropout, in any layer."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.layers.features import stages
from compression.nn import transformer

HIDDEN = -1e4  # a score that leaves no attention; -inf would make 0 times infinity of a divergence


class Parts:
    """Where a transformer's layers have their projections, whole or taken apart, and how many heads."""

    def __init__(self, model: nn.Module) -> None:
        names = transformer.names(model)
        self.parts = (names.query, names.key, names.value)
        attentions = {layer: model.get_submodule(f"{layer}.{names.attention}") for layer in stages(model)}
        self.heads: dict[str, int] = {layer: getattr(one, names.heads) for layer, one in attentions.items()}

    def heads_of(self, layer: str) -> int:
        """How many heads a layer has; UserError where `layer` is none of the transformer's."""
        if layer not in self.heads:
            raise UserError(f"{layer} is no layer with attention of its own; there are {', '.join(self.heads)}.")
        return self.heads[layer]

    def of(self, layer: str) -> list[str]:
        """The full names of a layer's query, key and value."""
        return [f"{layer}.{part}" for part in self.parts]


def require_same_heads(teacher: list[int], student: list[int]) -> None:
    if teacher != student:
        raise UserError(
            f"Attention is compared head by head, and the teacher's layers have {teacher} heads, the student's "
            f"{student}; take a student with as many heads, or the method feature."
        )


def scores(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """Scaled products of every token with every other `(batch, heads, length, length)`, head by head."""
    ours, theirs = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (left, right))
    return ours @ theirs.transpose(2, 3) / math.sqrt(ours.shape[-1])


def relations(left: Tensor, right: Tensor, heads: int, tokens: Tensor) -> Tensor:
    """The log of the softmax of the scores over the tokens that are there."""
    found = scores(left, right, heads).masked_fill(~tokens[:, None, None, :], HIDDEN)
    return F.log_softmax(found, dim=-1)
