"""Bit packing: code i takes the bits i * width to (i + 1) * width of one stream, lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BIT_POSITIONS = torch.arange(8, dtype=torch.uint8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack the signed codes of a tensor of any shape into bytes, uint8 `(ceil(count * bits / 8),)`."""
    unsigned = (codes.flatten().to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)  # int8 overflows at 127 + 128
    stream = (unsigned.unsqueeze(1) >> _BIT_POSITIONS[:bits].to(codes.device)) & 1  # (count, bits)
    stream = F.pad(stream.flatten(), (0, -stream.numel() % 8))
    # Each bit has a place of its own: the sum of a row is at most 255, and uint8 holds it.
    return (stream.view(-1, 8) << _BIT_POSITIONS.to(codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` signed codes that `pack` wrote, int8 `(count,)`."""
    stream = (packed.unsqueeze(1) >> _BIT_POSITIONS.to(packed.device)) & 1
    digits = stream.flatten()[: count * bits].view(count, bits)
    unsigned = (digits << _BIT_POSITIONS[:bits].to(packed.device)).sum(1, dtype=torch.uint8)
    return (unsigned.to(torch.int16) - (1 << bits - 1)).to(torch.int8)


def packed_size(count: int, bits: int) -> int:
    """Return the number of bytes that `count` packed codes take."""
    return -(-count * bits // 8)
