"""The content of a GGUF file: entries of its header, and tensors, read without believing any length in it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The library `gguf` unpacks the tensors; its
reader goes on behind the end of a file for as long as a header says, and takes 10 s for the words of SmolLM2.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf.quants import quant_shape_to_byte_shape

from compression.files import require_regular

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = (2, 3)
MOST_HEADER_BYTES = 2**28  # Gemma's, of 262,144 words, has 14 MB
TEXT, LIST = 8, 9
NUMBERS = {  # the numbers of types, and numpy's names for them
    **{0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}


@dataclass(frozen=True)
class Packed:
    """A tensor as it is stored."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray  # uint8, the same shape but for the last dimension

    def values(self) -> np.ndarray:
        """The values, float32. Raises NotImplementedError for a packing that the library does not know."""
        return np.array(dequantize(self.data, self.kind), np.float32)


class _Cursor:
    """Reads one thing after another; ValueError where the file ends before."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.place = data, 0

    def take(self, size: int) -> np.ndarray:
        if self.place + size > len(self.data):
            raise ValueError("it ends too early, or its header is too long")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)).tobytes())[0])

    def text(self) -> str:
        return self.take(self.number("<Q")).tobytes().decode()

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            kind, count = self.number("<I"), self.number("<Q")
            return self.numbers(kind, count) if kind in NUMBERS else [self.value(kind) for _ in range(count)]
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise ValueError(f"it has an entry of the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind])
        numbers: list[Any] = self.take(count * dtype.itemsize).view(dtype).tolist()
        return numbers


def read(path: Path) -> tuple[dict[str, Any], dict[str, Packed]]:
    """Return the entries of a file's header, and its tensors, which stay in the file, by name.

    Raises OSError if it cannot be read or is no file, and for a damaged one ValueError or whatever Python raises.
    """
    require_regular(path)
    content = np.memmap(path, mode="r")
    header = _Cursor(content[:MOST_HEADER_BYTES])
    if header.take(4).tobytes() != b"GGUF" or header.number("<I") not in VERSIONS:
        raise ValueError(f"it does not begin as one, or is none of version {' or '.join(map(str, VERSIONS))}")
    tensor_count, entry_count = header.number("<Q"), header.number("<Q")
    metadata = {header.text(): header.value(header.number("<I")) for _ in range(entry_count)}
    described = [_describe(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    body = content[math.ceil(header.place / alignment) * alignment :]
    tensors = {name: _tensor(body, shape, kind, place) for name, shape, kind, place in described}
    # Many names may stand for the same bytes, and be more in memory than the file is.
    if sum(tensor.data.nbytes for tensor in tensors.values()) > len(content):
        raise ValueError("its tensors lie upon one another")
    return metadata, tensors


def _describe(header: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Read the name, the shape, the number of the type, and the place of a tensor."""
    name, dimensions = header.text(), header.number("<I")
    shape = tuple(header.number("<Q") for _ in range(dimensions))
    return name, shape[::-1], header.number("<I"), header.number("<Q")


def _tensor(body: np.ndarray, shape: tuple[int, ...], number: int, place: int) -> Packed:
    kind = GGMLQuantizationType(number)
    packed = quant_shape_to_byte_shape(shape, kind) if kind in GGML_QUANT_SIZES else ()
    size = math.prod(packed)
    if place + size > len(body):
        raise ValueError("it ends before its tensors do")
    return Packed(kind, shape, body[place : place + size].reshape(packed))
