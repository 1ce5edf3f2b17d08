"""Attention: the student looks where the teacher looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.layers.features import Pairs, sample
from compression.methods.distill.layers.heads import Parts, relations, require_same_heads
from compression.methods.distill.layers.layered import Comparison, Layered, Outputs, require_same_kind, smaller
from compression.nn import transformer
from compression.params import param
from compression.training.context import Context

# The authors' weight of maps is 1000 for a mean over places; for a sum that is 1, 4 and 16 at 32, 16 and 8 pixels.
MAPS, RELATIONS = 5.0, 1.0


@dataclass(frozen=True)
class Attention(Layered):
    """Train the student to look where the teacher looks, beside its answers. In a CNN, the places where a stage is
    strong: Zagoruyko & Komodakis 2017, arXiv:1612.03928, eq. 2. In a transformer, the attention of the last layer and
    how its values compare: MiniLM, Wang et al. 2020, arXiv:2002.10957.

    A transformer's student needs as many heads as its teacher; their size may differ.
    """

    weight: float | None = param(
        None, "weight of the comparison; 5 for a CNN and 1 for a transformer if not set", interval="[0, inf)"
    )

    def comparison(self, teacher: nn.Module, student: nn.Module, context: Context) -> Comparison:
        pairs = self.layers_to_compare(teacher, student)
        if transformer.is_transformer(teacher) and transformer.is_transformer(student):
            weight = RELATIONS if self.weight is None else self.weight
            return TokenRelations(pairs if self.pairs else pairs[-1:], Parts(teacher), Parts(student), weight)
        known = sample(teacher, [name for name, _ in pairs], context)
        require_places(known)
        require_same_kind(pairs, known, sample(student, [name for _, name in pairs], context))
        return Maps(pairs, MAPS if self.weight is None else self.weight)


class Maps(Comparison):
    """The maps of strength of a CNN's layers."""

    def __init__(self, pairs: Pairs, weight: float) -> None:
        super().__init__(pairs)
        self.weight = weight

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        losses = [map_loss(seen[student], known[teacher]) for teacher, student in self.pairs]
        return self.weight * torch.stack(losses).sum()


def require_places(outputs: Outputs) -> None:
    for name, output in outputs.items():
        if output.ndim != 4:
            raise UserError(f"attention compares places of images, and {name} gives none; use feature or relational.")


def map_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over examples of the squared distance of two maps.

    Outputs `(batch, channels, height, width)`, of different size averaged to the smaller. The distance is squared as
    in what the authors compute; eq. 2 of the paper has it plain.
    """
    ours, theirs = (strength(output) for output in smaller(student, teacher))
    return (ours - theirs).square().sum(1).mean()


def strength(output: Tensor) -> Tensor:
    """Mean square over the channels at each place, `(batch, height * width)`, as a vector of length 1."""
    return F.normalize(output.square().mean(1).flatten(1))


class TokenRelations(Comparison):
    """Attention and value relations of a transformer's layers, from their queries, keys and values."""

    def __init__(self, pairs: Pairs, teacher: Parts, student: Parts, weight: float) -> None:
        super().__init__(pairs)
        self.heads, self.weight = [teacher.heads_of(name) for name, _ in pairs], weight
        require_same_heads(self.heads, [student.heads_of(name) for _, name in pairs])
        self.known = [teacher.of(name) for name, _ in pairs]
        self.seen = [student.of(name) for _, name in pairs]

    def watched(self) -> tuple[list[str], list[str]]:
        return sum(self.known, []), sum(self.seen, [])

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        losses = [
            minilm_loss([seen[name] for name in ours], [known[name] for name in theirs], heads, tokens)
            for ours, theirs, heads in zip(self.seen, self.known, self.heads, strict=True)
        ]
        return self.weight * torch.stack(losses).sum()


def minilm_loss(student: list[Tensor], teacher: list[Tensor], heads: int, tokens: Tensor) -> Tensor:
    """KL(teacher || student) of the attention and of the values' relations, added up; Wang et al. 2020, eq. 7 to 10.

    Query, key and value of each, `(batch, length, heads * size)`; `tokens` `(batch, length)` are no padding. The mean
    is over heads and tokens.
    """
    (query, key, value), (query_, key_, value_) = student, teacher
    attention = relation_loss(relations(query, key, heads, tokens), relations(query_, key_, heads, tokens), tokens)
    values = relation_loss(relations(value, value, heads, tokens), relations(value_, value_, heads, tokens), tokens)
    return attention + values


def relation_loss(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """KL divergence of log distributions `(batch, heads, length, length)`, averaged over heads and tokens."""
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return divergence.transpose(1, 2)[tokens].mean()
