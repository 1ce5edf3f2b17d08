"""Attention of a transformer's layers, recomputed from their projections: without dropout, and for any model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.layers.features import stage_names
from compression.nn import transformer

if TYPE_CHECKING:
    from torch import Tensor, nn

MASKED_SCORE = -1e4  # -inf would give 0 * inf = nan in a KL divergence


class AttentionProjections:
    """The names of the query, key and value projections of a transformer's layers, and their numbers of heads.

    Names are enough, so that projections which were decomposed are found too.
    """

    def __init__(self, model: nn.Module) -> None:
        names = transformer.architecture(model)
        self.parts = (names.query, names.key, names.value)
        attentions = {layer: model.get_submodule(f"{layer}.{names.attention}") for layer in stage_names(model)}
        self.heads: dict[str, int] = {
            # where attentions count no heads, all have as many as the config says
            layer: getattr(one, names.heads) if names.heads else model.config.num_attention_heads  # type: ignore[union-attr, misc]
            for layer, one in attentions.items()
        }

    def head_count(self, layer: str) -> int:
        """The number of heads of a layer; raises UserError where `layer` is none of the transformer's layers."""
        if layer not in self.heads:
            raise UserError(f"{layer} is no layer with attention of its own; there are {', '.join(self.heads)}.")
        return self.heads[layer]

    def names(self, layer: str) -> list[str]:
        """The full names of a layer's query, key and value."""
        return [f"{layer}.{part}" for part in self.parts]


def require_same_heads(teacher: list[int], student: list[int]) -> None:
    """Raise UserError where the numbers of heads of the compared layers differ."""
    if teacher != student:
        raise UserError(
            f"Attention is compared head by head, and the teacher's layers have {teacher} heads, the student's "
            f"{student}; take a student with as many heads, or the method feature."
        )


def attention_scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Scaled dot products `(batch, heads, length, length)` of tensors `(batch, length, heads * size)`."""
    # transformers 5 returns attention with attn_implementation="eager" only, and after its dropout.
    # (batch, heads, length, size)
    by_head, keys_by_head = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys))
    # Each model scales by the size of its own heads, which may differ between teacher and student.
    return by_head @ keys_by_head.transpose(2, 3) / math.sqrt(by_head.shape[-1])


def log_relations(queries: Tensor, keys: Tensor, heads: int, mask: Tensor) -> Tensor:
    """The log softmax of the scores over the tokens in `mask` `(batch, length)`: attention, or a value relation."""
    # padding as a key, for all heads and queries
    scores = attention_scores(queries, keys, heads).masked_fill(~mask[:, None, None, :], MASKED_SCORE)
    return F.log_softmax(scores, dim=-1)
