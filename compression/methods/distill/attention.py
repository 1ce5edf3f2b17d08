"""Attention transfer: the student attends to what the teacher attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.layers.features import LayerPairs, sample_outputs
from compression.methods.distill.layers.heads import AttentionProjections, log_relations, require_same_heads
from compression.methods.distill.layers.layer_distillation import (
    LayerDistillation,
    LayerLoss,
    LayerOutputs,
    pool_to_smaller,
    require_comparable,
)
from compression.nn import transformer
from compression.params import param

if TYPE_CHECKING:
    from compression.training.context import Context

# The authors' 1000 is for a mean over pixels; for the sum over them here that is 1, 4 and 16 at 32, 16 and 8 pixels.
MAP_WEIGHT, RELATION_WEIGHT = 5.0, 1.0


@dataclass(frozen=True)
class Attention(LayerDistillation):
    """Train the student on the teacher's attention in addition to its logits. In a CNN, on the pixels where a stage is
    active: Zagoruyko & Komodakis 2017, arXiv:1612.03928, eq. 2. In a transformer, on the attention and the value
    relations of the last layer: MiniLM, Wang et al. 2020, arXiv:2002.10957.

    A transformer's student needs as many heads as its teacher; their size may differ.
    """

    weight: float | None = param(
        None, "weight of the attention; 5 for a CNN and 1 for a transformer if not set", interval="[0, inf)"
    )

    def layer_loss(self, teacher: nn.Module, student: nn.Module, context: Context) -> LayerLoss:
        """The loss of MiniLM between transformers, of activation-based attention transfer between CNNs."""
        for model in (teacher, student):
            transformer.require_encoder(model, "attention compares queries with all keys, which is wrong for")
        pairs = self.compared_layers(teacher, student)
        if transformer.is_transformer(teacher) and transformer.is_transformer(student):
            weight = RELATION_WEIGHT if self.weight is None else self.weight
            projections = AttentionProjections(teacher), AttentionProjections(student)
            return MiniLmLoss(pairs if self.pairs else pairs[-1:], *projections, weight)
        of_teacher = sample_outputs(teacher, [layer for layer, _ in pairs], context)
        require_feature_maps(of_teacher)
        require_comparable(pairs, of_teacher, sample_outputs(student, [layer for _, layer in pairs], context))
        return AttentionMapLoss(pairs, MAP_WEIGHT if self.weight is None else self.weight)


class AttentionMapLoss(LayerLoss):
    """`weight` times the sum over the pairs of `attention_map_loss`."""

    def __init__(self, pairs: LayerPairs, weight: float) -> None:
        super().__init__(pairs)
        self.weight = weight

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:  # noqa: ARG002 - the base's signature
        """The weighted sum over the pairs."""
        losses = [attention_map_loss(student[of_student], teacher[of_teacher]) for of_teacher, of_student in self.pairs]
        return self.weight * torch.stack(losses).sum()


def require_feature_maps(outputs: LayerOutputs) -> None:
    """Raise UserError for the first output that is not `(batch, channels, height, width)`."""
    for name, output in outputs.items():
        if output.ndim != 4:
            raise UserError(
                f"attention compares feature maps of images, and {name} has none; use feature or relational."
            )


def attention_map_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of two attention maps, averaged over the batch.

    Feature maps `(batch, channels, height, width)`, of different size average-pooled to the smaller. The distance is
    squared as in the authors' code; eq. 2 of the paper has the distance itself.
    """
    of_student, of_teacher = (spatial_attention(output) for output in pool_to_smaller(student, teacher))
    return (of_student - of_teacher).square().sum(1).mean()


def spatial_attention(output: Tensor) -> Tensor:
    """The mean square over the channels at each pixel, `(batch, height * width)`, scaled to norm 1."""
    # The paper sums over the channels; the norm takes that factor away.
    return F.normalize(output.square().mean(1).flatten(1))


class MiniLmLoss(LayerLoss):
    """`weight` times the sum over the pairs of `minilm_loss`, from the layers' queries, keys and values."""

    def __init__(
        self, pairs: LayerPairs, teacher: AttentionProjections, student: AttentionProjections, weight: float
    ) -> None:
        super().__init__(pairs)
        self.heads, self.weight = [teacher.head_count(layer) for layer, _ in pairs], weight
        require_same_heads(self.heads, [student.head_count(layer) for _, layer in pairs])
        self.teacher_names = [teacher.names(layer) for layer, _ in pairs]
        self.student_names = [student.names(layer) for _, layer in pairs]

    def layer_names(self) -> tuple[list[str], list[str]]:
        """The projections of all layers."""
        sides = self.teacher_names, self.student_names
        of_teacher, of_student = ([name for names in side for name in names] for side in sides)
        return of_teacher, of_student

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:
        """The weighted sum over the pairs."""
        assert mask is not None
        losses = [
            minilm_loss([student[name] for name in of_student], [teacher[name] for name in of_teacher], heads, mask)
            for of_student, of_teacher, heads in zip(self.student_names, self.teacher_names, self.heads, strict=True)
        ]
        return self.weight * torch.stack(losses).sum()


def minilm_loss(student: list[Tensor], teacher: list[Tensor], heads: int, mask: Tensor) -> Tensor:
    """KL(teacher || student) of the attention and of the value relations, added up; Wang et al. 2020, eq. 7 to 10.

    Query, key and value of each, `(batch, length, heads * size)`; `mask` `(batch, length)` is False for padding. The
    mean is over heads and tokens.
    """
    (query, key, value), (teacher_query, teacher_key, teacher_value) = student, teacher
    attention = relation_loss(
        log_relations(query, key, heads, mask), log_relations(teacher_query, teacher_key, heads, mask), mask
    )
    values = relation_loss(
        log_relations(value, value, heads, mask), log_relations(teacher_value, teacher_value, heads, mask), mask
    )
    return attention + values


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL divergence of log distributions `(batch, heads, length, length)`, averaged over heads and tokens."""
    # (batch, heads, length) after the sum over the keys; padding as a query is left out, as a key it has probability 0
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    # (batch, length, heads) -> (tokens, heads)
    return divergence.transpose(1, 2)[mask].mean()
