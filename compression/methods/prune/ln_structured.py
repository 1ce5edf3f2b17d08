"""Channels masked by their norm; the shapes stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compression.methods.prune.masks import scores
from compression.methods.prune.masks.gradual import Gradual
from compression.nn import layers, transformer
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class LnStructured(Gradual):
    """Mask whole channels of each layer, those with the smallest Ln norm; the shapes stay (`structured` cuts them out).

    As torch.nn.utils.prune.ln_structured. The layer that gives the logits is left alone, for its
    channels are classes, and every other layer keeps one channel at least.
    """

    needs_finetune: ClassVar[bool] = True  # half of all channels at once is more than a network answers without

    n: float = param(2.0, "the norm: 1 adds absolute values, 2 squares, inf takes the largest", interval="(0, inf]")
    dim: int = param(0, "0 masks a layer's outputs, 1 its inputs", interval="[0, 1]")

    def candidates(self, model: nn.Module) -> Iterable[str]:
        last = transformer.classifier(model)
        return [name for name, layer in layers.prunable_layers(model).items() if layer is not last]

    def masks(self, model: nn.Module, shares: Mapping[str, float], context: Context) -> dict[str, Tensor]:
        return {name: self._mask(weight, shares[name]) for name, weight in self._weights(model, shares)}

    def _weights(self, model: nn.Module, shares: Mapping[str, float]) -> list[tuple[str, Tensor]]:
        return [(name, weight.detach()) for name, weight in scores.weights(model).items() if name in shares]

    def _mask(self, weight: Tensor, share: float) -> Tensor:
        found = norms(weight, self.n, self.dim)
        kept = scores.keep_largest({"": found}, min(share, 1 - 1 / len(found)))[""]
        shape = [1] * weight.ndim
        shape[self.dim] = -1
        return kept.view(shape).expand_as(weight).contiguous()


def norms(weight: Tensor, n: float, dim: int) -> Tensor:
    """The Ln norm of each slice of the weight along `dim`."""
    return torch.linalg.vector_norm(weight.transpose(0, dim).flatten(1), ord=n, dim=1)
