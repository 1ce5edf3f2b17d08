"""Decoders with the keys and values of earlier tokens as inputs and outputs: one file reads and continues texts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from compression import models
from compression.deploy.cache import input_name, output_name

if TYPE_CHECKING:
    from collections.abc import Sequence


# The dimensions that may have any size. Two of one name have the same: without names the file would compare them.
BATCH, LENGTH, EARLIER = torch.export.Dim("batch"), torch.export.Dim("length"), torch.export.Dim("past")


class CacheShape(NamedTuple):
    """Of one layer's keys or values."""

    heads: int
    size: int


class CachedDecoder(nn.Module):
    """Calls a decoder of transformers with token ids and what it kept of the tokens before them."""

    def __init__(self, model: nn.Module, shapes: Sequence[CacheShape]) -> None:
        super().__init__()
        self.model, self.shapes, self.argument = model, tuple(shapes), _cache_argument(model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return logits `(batch, length, tokens)`, and keys and values of all tokens, the earlier ones first.

        The `tensors` are token ids `(batch, length)`, then each layer's keys and its values of earlier tokens, `(batch,
        heads, earlier, size)`.
        """
        from transformers import DynamicCache

        input_ids, *past = tensors
        cache: Any = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        outputs = self.model(input_ids=input_ids, **{self.argument: cache}, use_cache=True)
        return outputs.logits, *(kept for layer in cache.layers for kept in (layer.keys, layer.values))

    def empty(self, batch: int, length: int = 0) -> dict[str, Tensor]:
        """Return keys and values of `batch` texts of `length` tokens, all 0, by their names in a file."""
        return {
            input_name(i): torch.zeros(batch, shape.heads, length, shape.size) for i, shape in enumerate(self.shapes)
        }

    def dimensions(self) -> tuple[dict[int, Any], ...]:
        """Return which dimensions of each input may have any size."""
        return {0: BATCH, 1: LENGTH}, *([{0: BATCH, 2: EARLIER}] * len(self.shapes))

    def output_names(self) -> list[str]:
        """Return the names of all outputs in a file."""
        return ["logits", *(output_name(i) for i in range(len(self.shapes)))]


def cached_decoder(model: nn.Module) -> CachedDecoder | None:
    """Return the model as one that takes a cache; None where it is no decoder, or keeps anything but keys and values.

    Layers that look back over a few tokens alone (sliding windows) or have a state (Mamba) are none that are kept here.
    """
    if models.transformers_config(model) is None or not getattr(model, "spec", {}).get("head"):
        return None
    shapes = _cache_shapes(model)
    return CachedDecoder(model, shapes) if shapes else None


def _cache_argument(model: nn.Module) -> str:
    """Return how the model calls its cache: `past_key_values` in earlier releases of transformers; empty for none."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), "")


@torch.no_grad()
def _cache_shapes(model: nn.Module) -> list[CacheShape]:
    """Return what the model keeps of a text, keys and values of each layer; nothing where it keeps other things."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if not (argument := _cache_argument(model)):
        return []
    cache: Any = DynamicCache(config=models.transformers_config(model))
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return []
    ids = torch.zeros(1, 2, dtype=torch.int64, device=next(model.parameters()).device)
    model(input_ids=ids, **{argument: cache}, use_cache=True)
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    if not all(isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor.shape[2] == 2 for tensor in kept):
        return []
    return [CacheShape(tensor.shape[1], tensor.shape[3]) for tensor in kept]
