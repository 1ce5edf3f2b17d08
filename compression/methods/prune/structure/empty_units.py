"""Removal of a transformer's empty heads and neurons, after which it gives the same logits and costs less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compression.nn import transformer

if TYPE_CHECKING:
    from torch import Tensor, nn


def remove_empty_units(model: nn.Module) -> nn.Module:
    """Cut every head and neuron whose weights are all zero on its input or its output side, in place.

    A head whose value weights are zero still adds its value bias, a neuron whose input weights are zero the activation
    of its bias. Both are the same for every input, and are added to the bias of the output layer.
    """
    for index, block in enumerate(transformer.blocks(model)):
        transformer.cut_heads(model, index, fold_constant_heads(block))
        transformer.cut_ffn(model, index, fold_constant_neurons(block, activation(model)))
    return model


@torch.no_grad()
def fold_constant_heads(block: transformer.Block) -> list[int]:
    """Add the outputs of constant heads to the output bias; the indices of the heads to keep."""
    by_head = block.value.weight.reshape(block.heads, block.head_size, -1)  # (heads, head_size, hidden)
    is_constant = ~by_head.flatten(1).any(1)
    # (hidden, heads, head_size): no output reads any dimension of the head
    is_unused = ~block.output.weight.reshape(-1, block.heads, block.head_size).any(2).any(0)
    # Attention weights add up to 1 over the tokens, so a constant value comes out of a head as it is.
    constant = block.value.bias * is_constant.repeat_interleave(block.head_size)
    block.output.bias.add_(block.output.weight @ constant)
    return _indices(~is_constant & ~is_unused)


@torch.no_grad()
def fold_constant_neurons(block: transformer.Block, activation: nn.Module) -> list[int]:
    """Add the outputs of constant neurons to the output bias; the indices of the neurons to keep."""
    is_constant, is_unused = ~block.up.weight.any(1), ~block.down.weight.any(0)
    block.down.bias.add_(block.down.weight @ (activation(block.up.bias) * is_constant))
    return _indices(~is_constant & ~is_unused)


def _indices(mask: Tensor) -> list[int]:
    indices: list[int] = mask.nonzero().flatten().tolist()
    return indices


def activation(model: Any) -> nn.Module:
    """The activation between the two linear layers of the model's feed-forward parts."""
    from transformers.activations import ACT2FN

    module: nn.Module = ACT2FN[getattr(model.config, "hidden_act", None) or model.config.activation]
    return module
