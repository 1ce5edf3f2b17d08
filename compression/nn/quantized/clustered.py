"""Layers with shared weights: a codebook of few float values, and an index of few bits into it for each weight."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from compression.nn.quantized.low_bit import LowBitConv2d, LowBitLayer, LowBitLinear, frozen_bias
from compression.nn.quantized.packing import pack, packed_size, unpack


class ClusteredLayer(LowBitLayer):
    """Base class of layers whose weight is looked up in a codebook.

    Stored are `packed` (uint8, the indices at their bit width) and `codebook` `(2**bits,)`; `weight` holds the values
    in memory alone. All are buffers: nothing here trains.
    """

    packed: Tensor
    codebook: Tensor

    def __init__(self, shape: tuple[int, ...], bias_size: int, bits: int) -> None:
        super().__init__()
        self.bits = bits
        weight = torch.zeros(shape)
        self.register_buffer("packed", torch.zeros(packed_size(weight.numel(), bits), dtype=torch.uint8))
        self.register_buffer("codebook", torch.zeros(2**bits))
        self.register_buffer("weight", weight, persistent=False)
        self.bias = frozen_bias(bias_size)

    @property
    def indices(self) -> Tensor:
        """Each weight's index into the codebook, int64 in the shape of the weight."""
        signed = unpack(self.packed, self.bits, self.weight.numel())
        return signed.view(self.weight.shape).long() + (1 << self.bits - 1)

    @torch.no_grad()
    def set_indices(self, indices: Tensor, codebook: Tensor, bias: Tensor | None) -> Self:
        """Set the indices (shape of the weight), the codebook (at most 2**bits values) and the bias."""
        self.to(codebook.device)
        # pack and unpack take signed codes: -2^(bits-1) stands for index 0.
        self.packed = pack(indices - 2 ** (self.bits - 1), self.bits)
        self.codebook[: len(codebook)] = codebook
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        self.update_weight()
        return self

    def update_weight(self) -> None:
        """Look the weight up in the codebook."""
        self.weight = self.codebook[self.indices]

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.update_weight()

    def extra_repr(self) -> str:
        """Shape of the weight and size of the codebook."""
        return f"{'x'.join(map(str, self.weight.shape))}, {2**self.bits} values"


class ClusteredLinear(LowBitLinear, ClusteredLayer):
    """`nn.Linear` with shared weights."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, bits: int = 5) -> None:
        super().__init__(in_features, out_features, bias, bits=bits)


class ClusteredConv2d(LowBitConv2d, ClusteredLayer):
    """`nn.Conv2d` with shared weights."""

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
        bits: int = 8,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, bits=bits)
