"""Layers whose weights share a few trained values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.quantize.clustering.kmeans import build_codebook
from compression.nn.quantized import conv_arguments
from compression.nn.quantized.clustered import ClusteredConv2d, ClusteredLayer, ClusteredLinear


class SharedWeight(nn.Module):
    """A layer that looks its weight up in a trained `codebook`.

    The gradient of a value is the sum of those of its weights: Han et al. 2016, arXiv:1510.00149, section 3.3. A value
    of 0 that stands for pruned weights stays 0.
    """

    codebook: nn.Parameter  # (values,)
    index: Tensor  # int64, in the shape of the weight
    trained: Tensor  # (values,), 0 for the value of pruned weights and 1 for the others
    bits: int

    def _share(self, layer: nn.Linear | nn.Conv2d, bits: int) -> None:
        codebook, index, has_zeros = build_codebook(layer.weight, bits)
        module: Any = self
        module.weight, module.bias, self.bits = None, layer.bias, bits
        self.codebook = nn.Parameter(codebook)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("trained", torch.ones_like(codebook), persistent=False)
        self.trained[0] = 0.0 if has_zeros else 1.0

    def values(self) -> Tensor:
        """The values of the codebook as they are used, `(values,)`."""
        return self.codebook * self.trained

    def convert(self) -> ClusteredLayer:
        """The layer as it is deployed."""
        raise NotImplementedError


class SharedLinear(SharedWeight, nn.Linear):
    """`nn.Linear` with a shared weight, in training; it shares the bias of `layer`."""

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        # On meta: a weight that is given up at once takes no memory and no random numbers.
        nn.Linear.__init__(self, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self._share(layer, bits)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs `(…, outputs)` for input `(…, inputs)`."""
        return F.linear(input, self.values()[self.index], self.bias)

    def convert(self) -> ClusteredLinear:
        """The layer with packed indices."""
        return ClusteredLinear.shaped_like(self, bits=self.bits).set_indices(self.index, self.values(), self.bias)


class SharedConv2d(SharedWeight, nn.Conv2d):
    """`nn.Conv2d` with a shared weight, in training; it shares the bias of `layer`."""

    def __init__(self, layer: nn.Conv2d, bits: int) -> None:
        nn.Conv2d.__init__(self, **conv_arguments(layer), bias=layer.bias is not None, device="meta")
        self._share(layer, bits)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs `(batch, outputs, height, width)` for input `(batch, inputs, height, width)`."""
        outputs: Tensor = self._conv_forward(input, self.values()[self.index], self.bias)
        return outputs

    def convert(self) -> ClusteredConv2d:
        """The layer with packed indices."""
        return ClusteredConv2d.shaped_like(self, bits=self.bits).set_indices(self.index, self.values(), self.bias)


def share_weight(layer: nn.Linear | nn.Conv2d, bits: int) -> SharedWeight:
    """The layer to train in place of `layer`, with at most 2^bits values."""
    return SharedLinear(layer, bits) if isinstance(layer, nn.Linear) else SharedConv2d(layer, bits)
