"""Layerwise distillation of transformers: each layer of the student learns from its layer of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression.methods.distill.layers.features import LayerPairs, stage_names
from compression.methods.distill.layers.layer_distillation import LayerDistillation
from compression.methods.distill.layers.transformer_losses import DistilBertLoss, TinyBertLoss, TransformerLayerLoss
from compression.methods.distill.students.copies import shallower_copy
from compression.nn import transformer
from compression.params import param

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context

STYLES = ("tinybert", "distilbert")


@dataclass(frozen=True)
class Layerwise(LayerDistillation):
    """Train a transformer's student layer by layer, in addition to the teacher's logits. TinyBERT (Jiao et al. 2020,
    arXiv:1909.10351): embeddings, hidden states and attention of every layer. DistilBERT (Sanh et al. 2019,
    arXiv:1910.01108): the direction of the last hidden states.

    Where no student is named, it starts as every second layer of the teacher, as DistilBERT does.
    """

    requires: ClassVar[str] = "text"

    style: str = param("tinybert", "what is compared of a layer", choices=STYLES, search=STYLES)
    dynamic: bool = param(
        False, "let each layer learn from the layer of the teacher that is nearest to it, in each batch"
    )
    adaptive: bool = param(False, "project each of the student's layers by a linear layer trained with the student")
    weight: float = param(1.0, "weight of the layers", interval="[0, inf)", search=(0.1, 10.0), log=True)

    def teacher_and_student(self, model: nn.Module, context: Context) -> tuple[nn.Module, nn.Module]:
        """The frozen teacher and the student to train; raises UserError also where `model` is no transformer."""
        transformer.architecture(model)
        return super().teacher_and_student(model, context)

    def default_student(self, teacher: nn.Module, context: Context) -> nn.Module:  # noqa: ARG002 - the base's signature
        """A copy of the teacher with half of its layers."""
        return shallower_copy(teacher, max(1, len(transformer.layers(teacher)) // 2))

    def layer_loss(self, teacher: nn.Module, student: nn.Module, context: Context) -> TransformerLayerLoss:  # noqa: ARG002 - the base's signature
        """The loss of the chosen style."""
        if self.style == "tinybert":
            for model in (teacher, student):
                what = "style=tinybert compares queries with all keys: take style=distilbert for"
                transformer.require_encoder(model, what)
        losses: dict[str, type[TransformerLayerLoss]] = {"tinybert": TinyBertLoss, "distilbert": DistilBertLoss}
        pairs = self.compared_layers(teacher, student)
        return losses[self.style](pairs, teacher, student, self.adaptive, self.weight)

    def compared_layers(self, teacher: nn.Module, student: nn.Module) -> LayerPairs:
        """The named pairs; else, if dynamic, all combinations of layers, and with DistilBERT the last pair."""
        if self.dynamic and not self.pairs:
            return [(t, s) for s in stage_names(student) for t in stage_names(teacher)]
        pairs = super().compared_layers(teacher, student)
        return pairs if self.pairs or self.style == "tinybert" else pairs[-1:]
