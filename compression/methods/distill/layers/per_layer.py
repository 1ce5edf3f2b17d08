"""How far a transformer's layers are from those of another, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.distill.layers.features import Pairs
from compression.methods.distill.layers.heads import Parts, require_same_heads, scores
from compression.methods.distill.layers.layered import Comparison, Outputs


class PerLayer(Comparison):
    """`weight` times the sum over the student's layers of how far each is from its layer of the teacher.

    A layer that stands in several pairs is compared with the nearest of them (NNI's DynamicLayerwiseDistiller).
    Behind it stands a projection: its own if `adaptive` (NNI's Adaptive1dLayerwiseDistiller), one for all layers
    where the widths differ (TinyBERT's W_h), none otherwise.
    """

    def __init__(self, pairs: Pairs, teacher: nn.Module, student: nn.Module, adaptive: bool, weight: float) -> None:
        super().__init__(pairs)
        self.weight, self.known, self.seen = weight, Parts(teacher), Parts(student)
        self.heads = [self.known.heads_of(one) for one, _ in pairs], [self.seen.heads_of(other) for _, other in pairs]
        ours, theirs = hidden_size(student), hidden_size(teacher)
        self.layers = list(dict.fromkeys(layer for _, layer in pairs))
        shared = projection(ours, theirs, always=False)
        self.projections = nn.ModuleList(
            projection(ours, theirs, always=True) if adaptive else shared for _ in self.layers
        )

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        theirs = {layer: self.view(self.known, layer, known, tokens) for layer, _ in self.pairs}
        ours = {
            layer: self.view(self.seen, layer, seen, tokens, project)
            for layer, project in zip(self.layers, self.projections, strict=True)
        }
        nearest = [
            torch.stack([self.apart(ours[layer], theirs[one]) for one, other in self.pairs if other == layer]).min()
            for layer in self.layers
        ]
        return self.weight * torch.stack(nearest).sum()

    def view(
        self, parts: Parts, layer: str, outputs: Outputs, tokens: Tensor, project: nn.Module | None = None
    ) -> Sequence[Tensor]:
        """What of a layer is compared, padding left out; its hidden states come first, projected."""
        hidden = outputs[layer][tokens]
        return [project(hidden) if project else hidden]

    def apart(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """How far two views are apart."""
        raise NotImplementedError


class DistilBert(PerLayer):
    """Hidden states are compared by their direction."""

    def apart(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return (1 - F.cosine_similarity(student[0], teacher[0], dim=-1)).mean()


class TinyBert(PerLayer):
    """Squared differences of embeddings, hidden states and attention scores; Jiao et al. 2020, eq. 7 to 9."""

    def __init__(self, pairs: Pairs, teacher: nn.Module, student: nn.Module, adaptive: bool, weight: float) -> None:
        super().__init__(pairs, teacher, student, adaptive, weight)
        require_same_heads(*self.heads)
        self.embeddings = embeddings(teacher), embeddings(student)
        self.project = projection(hidden_size(student), hidden_size(teacher), always=False)

    def watched(self) -> tuple[list[str], list[str]]:
        theirs, ours = super().watched()
        of_teacher, of_student = self.embeddings
        return [of_teacher, *self.sources(self.known, theirs)], [of_student, *self.sources(self.seen, ours)]

    def sources(self, parts: Parts, layers: list[str]) -> list[str]:
        """The layers and their queries and keys."""
        return list(dict.fromkeys(name for layer in layers for name in (layer, *parts.of(layer)[:2])))

    def forward(self, known: Outputs, seen: Outputs, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        ours, theirs = seen[self.embeddings[1]][tokens], known[self.embeddings[0]][tokens]
        return super().forward(known, seen, tokens) + self.weight * F.mse_loss(self.project(ours), theirs)

    def view(
        self, parts: Parts, layer: str, outputs: Outputs, tokens: Tensor, project: nn.Module | None = None
    ) -> Sequence[Tensor]:
        query, key, _ = parts.of(layer)
        found = scores(outputs[query], outputs[key], parts.heads_of(layer))
        both = tokens.unsqueeze(2) & tokens.unsqueeze(1)
        return [*super().view(parts, layer, outputs, tokens, project), found.permute(0, 2, 3, 1)[both]]

    def apart(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]).sum()


def projection(ours: int, theirs: int, always: bool) -> nn.Module:
    """A linear layer from one width to another that starts as the identity; none if it is not needed."""
    if ours == theirs and not always:
        return nn.Identity()
    made = nn.Linear(ours, theirs, bias=False)
    nn.init.eye_(made.weight)
    return made


def hidden_size(model: Any) -> int:
    """Dimensions of the hidden states, as the config has them: also where the linear layers were taken apart."""
    return model.config.hidden_size


def embeddings(model: nn.Module) -> str:
    """The name of the embeddings of a transformer."""
    return f"{model.base_model_prefix}.embeddings"
