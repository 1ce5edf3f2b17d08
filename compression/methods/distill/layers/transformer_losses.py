"""Losses between the layers of two transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.layers.heads import AttentionProjections, attention_scores, require_same_heads
from compression.methods.distill.layers.layer_distillation import LayerLoss, LayerOutputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.methods.distill.layers.features import LayerPairs


class TransformerLayerLoss(LayerLoss):
    """`weight` times the sum over the student's layers of their distances from their layers of the teacher.

    A layer that is in several pairs counts its smallest distance (NNI's DynamicLayerwiseDistiller). Its hidden states
    go through a projection: one of its own if `adaptive` (NNI's Adaptive1dLayerwiseDistiller), one for all layers where
    the widths differ (TinyBERT's W_h), none otherwise.
    """

    def __init__(
        self, pairs: LayerPairs, teacher: nn.Module, student: nn.Module, adaptive: bool, weight: float
    ) -> None:
        super().__init__(pairs)
        self.weight, self.teacher, self.student = weight, AttentionProjections(teacher), AttentionProjections(student)
        self.heads = (
            [self.teacher.head_count(layer) for layer, _ in pairs],
            [self.student.head_count(layer) for _, layer in pairs],
        )
        sizes = hidden_size(student), hidden_size(teacher)
        self.layers = list(dict.fromkeys(layer for _, layer in pairs))
        # One module in every place is one set of weights; `parameters()` gives it once.
        shared = projection(*sizes, always=False)
        self.projections = nn.ModuleList(projection(*sizes, always=True) if adaptive else shared for _ in self.layers)

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:
        """The weighted sum of the distances."""
        assert mask is not None
        of_teacher = {layer: self.compared_tensors(self.teacher, layer, teacher, mask) for layer, _ in self.pairs}
        of_student = {
            layer: self.compared_tensors(self.student, layer, student, mask, project)
            for layer, project in zip(self.layers, self.projections, strict=True)
        }
        smallest = [
            # Only the nearest layer of the teacher gets a gradient through the minimum.
            torch.stack([self.distance(of_student[layer], of_teacher[t]) for t, s in self.pairs if s == layer]).min()
            for layer in self.layers
        ]
        return self.weight * torch.stack(smallest).sum()

    def compared_tensors(
        self,
        projections: AttentionProjections,  # noqa: ARG002 - overrides need it
        layer: str,
        outputs: LayerOutputs,
        mask: Tensor,
        project: nn.Module | None = None,
    ) -> Sequence[Tensor]:
        """What is compared of a layer, without padding; first its projected hidden states `(tokens, width)`."""
        hidden = outputs[layer][mask]
        return [project(hidden) if project else hidden]

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """A scalar distance of the compared tensors of two layers."""
        raise NotImplementedError


class DistilBertLoss(TransformerLayerLoss):
    """Compares the directions of hidden states."""

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """1 - cosine similarity, the mean over tokens."""
        return (1 - F.cosine_similarity(student[0], teacher[0], dim=-1)).mean()


class TinyBertLoss(TransformerLayerLoss):
    """Squared differences of embeddings, hidden states and attention scores; Jiao et al. 2020, eq. 7 to 9."""

    def __init__(
        self, pairs: LayerPairs, teacher: nn.Module, student: nn.Module, adaptive: bool, weight: float
    ) -> None:
        super().__init__(pairs, teacher, student, adaptive, weight)
        require_same_heads(*self.heads)
        self.embeddings = embeddings_name(teacher), embeddings_name(student)
        # W_e of eq. 9, apart from the layers' W_h of eq. 8
        self.project = projection(hidden_size(student), hidden_size(teacher), always=False)

    def layer_names(self) -> tuple[list[str], list[str]]:
        """The embeddings, and the layers with their queries and keys."""
        teacher_layers, student_layers = super().layer_names()
        teacher_embeddings, student_embeddings = self.embeddings
        return (
            [teacher_embeddings, *with_projections(self.teacher, teacher_layers)],
            [student_embeddings, *with_projections(self.student, student_layers)],
        )

    def forward(self, teacher: LayerOutputs, student: LayerOutputs, mask: Tensor | None) -> Tensor:
        """The distances of the layers and of the embeddings."""
        assert mask is not None
        of_teacher, of_student = teacher[self.embeddings[0]][mask], student[self.embeddings[1]][mask]
        return super().forward(teacher, student, mask) + self.weight * F.mse_loss(self.project(of_student), of_teacher)

    def compared_tensors(
        self,
        projections: AttentionProjections,
        layer: str,
        outputs: LayerOutputs,
        mask: Tensor,
        project: nn.Module | None = None,
    ) -> Sequence[Tensor]:
        """The hidden states, and the attention scores `(pairs of tokens, heads)`."""
        query, key, _ = projections.names(layer)
        # Before the softmax, as in the paper: the probabilities converged more slowly there.
        scores = attention_scores(outputs[query], outputs[key], projections.head_count(layer))
        both = mask.unsqueeze(2) & mask.unsqueeze(1)  # (batch, length, length): pairs of real tokens
        hidden = super().compared_tensors(projections, layer, outputs, mask, project)
        return [*hidden, scores.permute(0, 2, 3, 1)[both]]  # (batch, length, length, heads) before the mask

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The sum of the mean squared differences of hidden states and scores."""
        return torch.stack([F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


def with_projections(projections: AttentionProjections, layers: list[str]) -> list[str]:
    """The names of layers and of their queries and keys, each once."""
    return list(dict.fromkeys(name for layer in layers for name in (layer, *projections.names(layer)[:2])))


def projection(student_size: int, teacher_size: int, always: bool) -> nn.Module:
    """A linear layer between widths that starts as the identity; none where they are equal, unless `always`."""
    if student_size == teacher_size and not always:
        return nn.Identity()
    linear = nn.Linear(student_size, teacher_size, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def hidden_size(model: Any) -> int:
    """The width of the hidden states by the config, which holds for decomposed linear layers too."""
    size: int = model.config.hidden_size
    return size


def embeddings_name(model: nn.Module) -> str:
    """The name of the module of a transformer's embeddings."""
    return f"{model.base_model_prefix}.embeddings"
