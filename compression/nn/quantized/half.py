"""Layers whose weights are stored in 16 bits, as float16 or bfloat16, and cast to float32 where they are used.

CPUs without half-precision arithmetic, and ONNX Runtime's kernels for them, compute in 32 bits anyway.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from compression.nn.quantized.low_bit import LowBitConv2d, LowBitEmbedding, LowBitLayer, LowBitLinear, frozen_bias


class HalfLayer(LowBitLayer):
    """Base class of layers with a `weight` of the dtype that `stored` names: float16 or bfloat16."""

    weight: nn.Parameter

    def __init__(self, shape: tuple[int, ...], bias_size: int, stored: str) -> None:
        super().__init__()
        self.stored = stored
        self.weight = nn.Parameter(torch.zeros(shape, dtype=getattr(torch, stored)), requires_grad=False)
        self.bias = frozen_bias(bias_size)

    @torch.no_grad()
    def set_weight(self, weight: Tensor, bias: Tensor | None) -> Self:
        """Set the weight, rounded to 16 bits, and the bias; on the device of `weight`."""
        self.to(weight.device)
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        return self

    def float_weight(self) -> Tensor:
        """Return the weight, cast to float32."""
        return self.weight.float()

    def extra_repr(self) -> str:
        """Shape and dtype of the weight."""
        return f"{'x'.join(map(str, self.weight.shape))}, {self.stored}"


class HalfLinear(LowBitLinear, HalfLayer):
    """`nn.Linear` with a weight of 16 bits."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, stored: str = "float16") -> None:
        super().__init__(in_features, out_features, bias, stored=stored)


class HalfConv2d(LowBitConv2d, HalfLayer):
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
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, stored=stored)


class HalfEmbedding(LowBitEmbedding, HalfLayer):
    """`nn.Embedding` with a table of 16 bits; only the rows that are looked up are cast to float32."""

    def __init__(self, num_embeddings: int, embedding_dim: int, stored: str = "float16") -> None:
        super().__init__(num_embeddings, embedding_dim, stored=stored)

    def forward(self, input: Tensor) -> Tensor:
        """Look up `input` of any shape: float32 `(..., embedding_dim)`."""
        return super().forward(input).float()
