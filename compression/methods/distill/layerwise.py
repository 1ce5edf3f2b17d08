"""Layerwise distillation of transformers: every layer of the student learns from its layer of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compression.methods.distill.layers.features import Pairs, stages
from compression.methods.distill.layers.layered import Comparison, Layered
from compression.methods.distill.layers.per_layer import DistilBert, TinyBert
from compression.methods.distill.students.copies import shallower
from compression.nn import transformer
from compression.params import param
from compression.training.context import Context

STYLES = ("tinybert", "distilbert")


@dataclass(frozen=True)
class Layerwise(Layered):
    """Train a transformer's student layer by layer, beside the teacher's answers. TinyBERT (Jiao et al. 2020,
    arXiv:1909.10351): embeddings, hidden states and attention of every layer. DistilBERT (Sanh et al. 2019,
    arXiv:1910.01108): the direction of the last hidden states.

    Where no student is named, it starts as every second layer of the teacher, as DistilBERT does.
    """

    requires: ClassVar[str] = "text"

    style: str = param("tinybert", "what of a layer is compared", choices=STYLES, search=STYLES)
    dynamic: bool = param(False, "let each layer learn from that layer of the teacher that is nearest just then")
    adaptive: bool = param(False, "put a projection that learns along behind each of the student's layers")
    weight: float = param(1.0, "weight of the layers", interval="[0, inf)", search=(0.1, 10.0), log=True)

    def pair(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        transformer.names(model)  # refuses what has no layers
        return super().pair(model, context)

    def small(self, teacher: nn.Module, context: Context) -> nn.Module:
        return shallower(teacher, max(1, len(transformer.layers(teacher)) // 2))

    def comparison(self, teacher: nn.Module, student: nn.Module, context: Context) -> Comparison:
        kind = {"tinybert": TinyBert, "distilbert": DistilBert}[self.style]
        return kind(self.layers_to_compare(teacher, student), teacher, student, self.adaptive, self.weight)

    def layers_to_compare(self, teacher: nn.Module, student: nn.Module) -> Pairs:
        """Dynamic: every layer of the student with all of the teacher's; DistilBERT: the last ones."""
        if self.dynamic and not self.pairs:
            return [(theirs, ours) for ours in stages(student) for theirs in stages(teacher)]
        found = super().layers_to_compare(teacher, student)
        return found if self.pairs or self.style == "tinybert" else found[-1:]
