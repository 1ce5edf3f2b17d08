"""Codes as bits on disk: code i takes bits i * width up to (i + 1) * width of one stream, lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor

_PLACES = torch.arange(8, dtype=torch.uint8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """The signed codes of a tensor of any shape as bytes `(ceil(count * bits / 8),)`, uint8."""
    unsigned = (codes.flatten().to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    stream = (unsigned.unsqueeze(1) >> _PLACES[:bits].to(codes.device)) & 1
    stream = torch.nn.functional.pad(stream.flatten(), (0, -stream.numel() % 8))
    return (stream.view(-1, 8) << _PLACES.to(codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` signed codes that `pack` wrote, int8 `(count,)`."""
    stream = (packed.unsqueeze(1) >> _PLACES.to(packed.device)) & 1
    digits = stream.flatten()[: count * bits].view(count, bits)
    unsigned = (digits << _PLACES[:bits].to(packed.device)).sum(1, dtype=torch.uint8)
    return (unsigned.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return -(-count * bits // 8)
