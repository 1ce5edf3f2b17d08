"""Masks on the channels with the smallest norms; the shapes stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from compression.methods.prune.masks.scheduled import ScheduledPruning
from compression.methods.prune.masks.scores import Masks, keep_largest, prunable_weights
from compression.nn import layers, transformer
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from compression.training.context import Context


@dataclass(frozen=True)
class LnStructured(ScheduledPruning):
    """Mask whole channels of each layer, those with the smallest Ln norm; the shapes stay (`structured` cuts them out).

    As torch.nn.utils.prune.ln_structured. The layer that gives the logits is left alone, for its channels are classes,
    and every other layer keeps one channel at least.
    """

    needs_finetune: ClassVar[bool] = True  # half of all channels at once is more than a network can lose

    n: float = param(2.0, "the norm: 1 adds absolute values, 2 squares, inf takes the largest", interval="(0, inf]")
    dim: int = param(0, "0 masks a layer's outputs, 1 its inputs", interval="[0, 1]")

    def prunable_layers(self, model: nn.Module) -> Iterable[str]:
        """All but the layer that gives the logits."""
        classifier = transformer.classifier(model)
        return [name for name, layer in layers.prunable_layers(model).items() if layer is not classifier]

    def masks(self, model: nn.Module, sparsities: Mapping[str, float], context: Context) -> Masks:  # noqa: ARG002
        """Rank the channels of each layer by their norm."""
        weights = prunable_weights(model)
        return {name: self.channel_mask(weights[name].detach(), sparsity) for name, sparsity in sparsities.items()}

    def channel_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        """The mask of one weight, in its shape, constant over each channel along `dim`."""
        norms = channel_norms(weight, self.n, self.dim)
        keep = keep_largest({"": norms}, min(sparsity, 1 - 1 / len(norms)))[""]
        shape = [1] * weight.ndim
        shape[self.dim] = -1
        # Contiguous: masks are narrowed in place, which torch refuses for an expanded view of stride 0.
        return keep.view(shape).expand_as(weight).contiguous()


def channel_norms(weight: Tensor, n: float, dim: int) -> Tensor:
    """The Ln norm of each slice of the weight along `dim`, `(channels,)`."""
    norms: Tensor = torch.linalg.vector_norm(weight.transpose(0, dim).flatten(1), ord=n, dim=1)
    return norms
