"""torch's attention with its packed weights as linear layers, which pruning, quantization and decomposition know."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.nn.graph import replace_modules
from compression.nn.inputs import forward

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.nn.inputs import Inputs


class SeparateAttention(nn.Module):
    """Computes what an `nn.MultiheadAttention` does, and is called alike; queries, keys and values are linear layers.

    The scores are scaled by the head size of the original, however wide the layers are later.
    """

    # What torch's transformer layers read before they hand packed weights to a kernel of their own: there are none.
    _qkv_same_embed_dim, in_proj_bias = False, None

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = source.num_heads, source.batch_first, source.dropout
        self.scale = 1 / math.sqrt(source.head_dim)
        weights: Sequence[Tensor] = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        if source._qkv_same_embed_dim:
            weights = source.in_proj_weight.chunk(3)
        biases = (None,) * 3 if source.in_proj_bias is None else source.in_proj_bias.chunk(3)
        self.query, self.key, self.value = map(_linear, weights, biases)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 - a hint about `attn_mask`, which is there as well
    ) -> tuple[Tensor, Tensor | None]:
        """The outputs and, with `need_weights`, the attention weights, in the shapes of `nn.MultiheadAttention`."""
        if query.ndim == 2:  # a single sequence
            sequences = [tensor.unsqueeze(0) for tensor in (query, key, value)]
            padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        else:
            sequences = [tensor if self.batch_first else tensor.transpose(0, 1) for tensor in (query, key, value)]
            padding = key_padding_mask
        layers = (self.query, self.key, self.value)
        q, k, v = (self._heads(layer(sequence)) for layer, sequence in zip(layers, sequences, strict=True))
        mask = self._mask(attn_mask, padding, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.scale @ k.transpose(2, 3)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(3), dropout)
            attended = weights @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        outputs = self.out_proj(attended.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if query.ndim == 2:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _heads(self, values: Tensor) -> Tensor:
        """Split `(batch, length, width)` into `(batch, heads, length, width / heads)`."""
        return values.reshape(*values.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the scores `(batch, heads, queries, keys)`; None if nothing is masked."""
        masks = []
        if attention is not None:  # (queries, keys) or (batch * heads, queries, keys)
            mask = _additive(attention, like)
            masks.append(mask if mask.ndim == 2 else mask.reshape(-1, self.num_heads, *mask.shape[1:]))
        if padding is not None:  # (batch, keys)
            masks.append(_additive(padding, like)[:, None, None, :])
        return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add to scores: where a bool one is true, minus infinity."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def separable(model: nn.Module) -> Mapping[str, nn.MultiheadAttention]:
    """The attentions of `model`, by name, that can become a `SeparateAttention`.

    Those that append keys of their own cannot, nor can subclasses, and those that share a weight with others.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    found = {name: module for name, module in model.named_modules() if type(module) is nn.MultiheadAttention}
    return {
        name: module
        for name, module in found.items()
        if module.bias_k is None
        and not module.add_zero_attn
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    }


def separate_attention(model: nn.Module) -> nn.Module:
    """Replace the `separable` attentions of `model` by ones of linear layers, in place."""
    replace_modules(model, {name: SeparateAttention(module) for name, module in separable(model).items()})
    return model


@torch.no_grad()
def separate_if_equal(model: nn.Module, example: Inputs) -> bool:
    """`separate_attention`, unless there is none or the logits on the prepared batch `example` would differ.

    They do, or the model fails, where its own code reads the packed weights. It is in eval mode afterwards.
    """
    attentions = separable(model)
    expected = forward(model.eval(), example) if attentions else None
    separate_attention(model)
    if expected is None:
        return False
    with contextlib.suppress(AttributeError, TypeError, RuntimeError):
        if torch.allclose(forward(model, example), expected, rtol=1e-4, atol=1e-5):
            return True
    replace_modules(model, attentions)
    return False
