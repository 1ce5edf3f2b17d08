"""A model in one Huffman-coded file: Deep Compression's last stage.  Han et al. 2016, arXiv:1510.00149, section 4.

After a header (JSON, deflated) come the parts of each layer: its codebook as floats, the codes' lengths and bits of its
indices and, where that is shorter, of the gaps between weights that are not zero. All other tensors follow as they are.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.quantized.huffman import HuffmanCoded, decode, encode

GAPS = 256  # a symbol stands for 0 to 255 zeros; a longer gap is filled with a weight that is zero


@dataclass(frozen=True)
class Layer:
    """The indices of one layer, coded; of all its weights, or of those after `gaps` zeros each."""

    values: HuffmanCoded
    gaps: HuffmanCoded | None

    @property
    def size(self) -> int:
        return self.values.size + (self.gaps.size if self.gaps else 0)


def code(indices: NDArray[np.int64], alphabet: int, zero: int | None) -> Layer:
    """The shorter of the two ways to code `indices` (any shape); `zero` is the index of the value 0, if it has one."""
    dense = Layer(encode(indices, alphabet), None)
    if zero is None:
        return dense
    gaps, values = spread(indices.ravel(), zero)
    sparse = Layer(encode(values, alphabet), encode(gaps, GAPS))
    return min(dense, sparse, key=lambda layer: layer.size)


def restore(layer: Layer, count: int, zero: int | None) -> NDArray[np.int64]:
    """The `count` indices that `code` was given, flat."""
    values = decode(layer.values)
    if layer.gaps is None:
        return values
    found = np.full(count, zero, dtype=np.int64)
    found[np.cumsum(decode(layer.gaps) + 1) - 1] = values
    return found


def spread(indices: NDArray[np.int64], zero: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Gaps before the entries that are not `zero`, and these entries; gaps too long are cut by an entry `zero`."""
    places = np.flatnonzero(indices != zero)
    between = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(between // GAPS + 1) - 1
    count = ends[-1] + 1 if len(ends) else 0
    gaps, values = np.full(count, GAPS - 1), np.full(count, zero)
    gaps[ends], values[ends] = between % GAPS, indices[places]
    return gaps, values


def write(model: nn.Module, path: Path) -> dict[str, int]:
    """Write all that `model` knows to `path`; the bytes that the indices of each clustered layer take."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ClusteredLayer)}
    header: list[Any] = []
    blobs: list[bytes] = []
    sizes = {}
    for name, module in layers.items():
        about, parts = _layer(module)
        header.append([name, *about])
        blobs += parts
        sizes[name] = sum(map(len, parts))
    for name, tensor in others(model).items():
        header.append([name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")])
        blobs.append(tensor.numpy().tobytes())
    head = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    path.write_bytes(len(head).to_bytes(4, "little") + head + b"".join(blobs))
    return sizes


def _layer(module: ClusteredLayer) -> tuple[list[Any], list[bytes]]:
    """What the header says of a layer (shape, values, index of zero, lengths of the parts), and the parts."""
    indices = module.indices.cpu().numpy()
    book = module.codebook.cpu().numpy()[: int(indices.max()) + 1]
    zero = next(iter(np.flatnonzero(book == 0).tolist()), None)
    coded = code(indices, len(book), zero)
    parts = [book.tobytes()]
    about: list[Any] = [list(indices.shape), len(book), zero]
    for part in (coded.values, coded.gaps) if coded.gaps else (coded.values,):
        about += [part.count, len(part.bits)]
        parts += [part.lengths.tobytes(), part.bits]
    return about, parts


def others(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` that is not the weight of a clustered layer."""
    held = {
        f"{n}.{part}" for n, m in model.named_modules() if isinstance(m, ClusteredLayer) for part in ("packed", "codebook")
    }
    return {name: t.detach().cpu() for name, t in model.state_dict().items() if name not in held}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write` wrote: `<layer>.weight` of each clustered layer, and all the others."""
    content = path.read_bytes()
    start = 4 + int.from_bytes(content[:4], "little")
    header = json.loads(zlib.decompress(content[4:start]))
    rest = _Bytes(content, start)
    found = {}
    for name, shape, *about in header:
        if isinstance(about[0], str):
            kind = getattr(torch, about[0])
            raw = bytearray(rest.take(math.prod(shape) * kind.itemsize))
            found[name] = torch.frombuffer(raw, dtype=kind).view(shape) if raw else torch.zeros(shape, dtype=kind)
        else:
            found[f"{name}.weight"] = _weight(rest, shape, *about)
    return found


@dataclass
class _Bytes:
    content: bytes
    place: int

    def take(self, count: int) -> bytes:
        self.place += count
        return self.content[self.place - count : self.place]


def _weight(rest: _Bytes, shape: list[int], values: int, zero: int | None, *parts: int) -> Tensor:
    book = np.frombuffer(rest.take(4 * values), dtype=np.float32)
    coded = []
    for (count, size), alphabet in zip(zip(parts[::2], parts[1::2], strict=True), (values, GAPS), strict=False):
        lengths = np.frombuffer(rest.take(alphabet), dtype=np.uint8)
        coded.append(HuffmanCoded(lengths, count, rest.take(size)))
    layer = Layer(coded[0], coded[1] if len(coded) > 1 else None)
    return torch.from_numpy(book[restore(layer, math.prod(shape), zero)].reshape(shape))
