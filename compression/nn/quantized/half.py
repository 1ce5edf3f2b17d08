"""Layers whose weights are stored in 16 bits, as float16 or bfloat16, and cast to float32 where they are used.

CPUs without half-precision arithmetic, and ONNX Runtime's kernels for them, compute in 32 bits anyway.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.nn.quantized.convolution import conv_options


class HalfLayer(nn.Module):
    """Base class of layers with a `weight` of the dtype that `stored` names (`float16`, say), which does not train."""

    def __init__(self, shape: tuple[int, ...], stored: str, bias: int = 0) -> None:
        super().__init__()
        self.stored = stored
        self.weight = nn.Parameter(torch.zeros(shape, dtype=getattr(torch, stored)), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(bias), requires_grad=False) if bias else None

    @torch.no_grad()
    def set_weight(self, weight: Tensor, bias: Tensor | None) -> Self:
        """Set the weight, rounded to the nearest half, and the bias."""
        self.to(weight.device)
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        return self

    def extra_repr(self) -> str:
        """Shape and dtype of the weight."""
        return f"{'x'.join(map(str, self.weight.shape))}, {self.stored}"


class HalfLinear(HalfLayer):
    """`nn.Linear` with a weight of 16 bits."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, stored: str = "float16") -> None:
        super().__init__((out_features, in_features), stored, out_features if bias else 0)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return F.linear(inputs, self.weight.float(), self.bias)


class HalfConv2d(HalfLayer):
    """`nn.Conv2d` with a weight of 16 bits."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        stored: str = "float16",
    ) -> None:
        super().__init__((out_channels, in_channels // groups, *kernel_size), stored, out_channels if bias else 0)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(batch, in_channels, height, width)` to feature maps `(batch, out_channels, ...)`."""
        return F.conv2d(inputs, self.weight.float(), self.bias, **conv_options(self))


class HalfEmbedding(HalfLayer):
    """`nn.Embedding` with a table of 16 bits; only the rows that are looked up are cast to float32."""

    def __init__(self, num_embeddings: int, embedding_dim: int, stored: str = "float16") -> None:
        super().__init__((num_embeddings, embedding_dim), stored)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, indices: Tensor) -> Tensor:
        """Look up `indices` of any shape: float32 `(..., embedding_dim)`."""
        return F.embedding(indices, self.weight).float()
