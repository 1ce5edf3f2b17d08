"""A clustered model in one Huffman-coded file: Deep Compression's last stage.  Han et al. 2016, arXiv:1510.00149,
section 4.

After a header (its length in 4 bytes, then deflated JSON) come the parts of each layer: its codebook as floats, the
code lengths and bits of its indices and, where that is shorter, of the gaps between weights that are not zero. All
other tensors follow as they are.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.quantized.huffman import HuffmanCoded, decode, encode

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GAPS = 256  # symbols, for gaps of 0 to 255 zeros; longer ones are split by a weight that is zero


@dataclass(frozen=True)
class CodedIndices:
    """The indices of one layer, Huffman-coded: of all its weights, or of those after `gaps` zeros each."""

    values: HuffmanCoded
    gaps: HuffmanCoded | None

    @property
    def size(self) -> int:
        """Bytes of the bits and code lengths."""
        return self.values.size + (self.gaps.size if self.gaps else 0)


def encode_indices(indices: NDArray[np.int64], alphabet: int, zero: int | None) -> CodedIndices:
    """Code `indices` (any shape, below `alphabet`) densely or sparsely, whichever is shorter.

    `zero` is the index of the value 0, None if there is none.
    """
    dense = CodedIndices(encode(indices, alphabet), None)
    if zero is None:
        return dense
    gaps, values = split_gaps(indices.ravel(), zero)
    sparse = CodedIndices(encode(values, alphabet), encode(gaps, GAPS))
    return min(dense, sparse, key=lambda coded: coded.size)


def decode_indices(coded: CodedIndices, count: int, zero: int | None) -> NDArray[np.int64]:
    """The `count` indices that `encode_indices` was given, flat."""
    values = decode(coded.values)
    if coded.gaps is None:
        return values
    # Only zeros follow the last entry: they are not coded.
    indices = np.full(count, zero, dtype=np.int64)
    indices[np.cumsum(decode(coded.gaps) + 1) - 1] = values
    return indices


def split_gaps(indices: NDArray[np.int64], zero: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of the gaps before the entries of `indices` `(n,)` that are not `zero`, and these entries.

    A gap of 256 or more is split by an entry `zero`.
    """
    positions = np.flatnonzero(indices != zero)
    lengths = np.diff(positions, prepend=-1) - 1
    # 556 zeros before a weight become gaps of 255, 255 and 44: a zero that is stored ends each of the first two, and
    # they take 256 places each. `ends` are the places of the real weights among the entries.
    ends = np.cumsum(lengths // GAPS + 1) - 1
    count = ends[-1] + 1 if len(ends) else 0
    gaps, values = np.full(count, GAPS - 1), np.full(count, zero)
    gaps[ends], values[ends] = lengths % GAPS, indices[positions]
    return gaps, values


def write(model: nn.Module, path: Path) -> dict[str, int]:
    """Write the whole state of `model` to `path`; the bytes that each clustered layer takes, by name."""
    header: list[Any] = []
    blobs: list[bytes] = []
    sizes = {}
    for name, module in model.named_modules():
        if isinstance(module, ClusteredLayer):
            entry, parts = _layer_parts(module)
            header.append([name, *entry])
            blobs += parts
            sizes[name] = sum(map(len, parts))
    for name, tensor in other_tensors(model).items():
        header.append([name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")])
        blobs.append(tensor.numpy().tobytes())
    deflated = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    path.write_bytes(len(deflated).to_bytes(4, "little") + deflated + b"".join(blobs))
    return sizes


def _layer_parts(module: ClusteredLayer) -> tuple[list[Any], list[bytes]]:
    """A layer's entry in the header (shape, values, index of zero, counts and lengths of the parts), and the parts."""
    indices = module.indices.cpu().numpy()
    # The buffer has 2^bits entries, zeros at its end: these are no values, nor the index of zero.
    codebook = module.codebook.cpu().numpy()[: int(indices.max()) + 1]
    zero = next(iter(np.flatnonzero(codebook == 0).tolist()), None)
    coded = encode_indices(indices, len(codebook), zero)
    entry: list[Any] = [list(indices.shape), len(codebook), zero]
    parts = [codebook.tobytes()]
    for part in (coded.values, coded.gaps) if coded.gaps else (coded.values,):
        entry += [part.count, len(part.bits)]
        parts += [part.lengths.tobytes(), part.bits]
    return entry, parts


def other_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` except the weights of clustered layers, on the CPU."""
    of_weights = {
        f"{n}.{part}"
        for n, m in model.named_modules()
        if isinstance(m, ClusteredLayer)
        for part in ("packed", "codebook")
    }
    return {name: t.detach().cpu() for name, t in model.state_dict().items() if name not in of_weights}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write` wrote: `<layer>.weight` of each clustered layer, and all the others."""
    stream = io.BytesIO(path.read_bytes())
    header = json.loads(zlib.decompress(stream.read(int.from_bytes(stream.read(4), "little"))))
    found = {}
    for name, shape, *entry in header:
        # A dtype for plain tensors, the number of values for a codebook.
        if isinstance(entry[0], str):
            found[name] = _read_tensor(stream, shape, getattr(torch, entry[0]))
        else:
            found[f"{name}.weight"] = _read_weight(stream, shape, *entry)
    return found


def _read_tensor(stream: io.BytesIO, shape: list[int], dtype: torch.dtype) -> Tensor:
    raw = bytearray(stream.read(math.prod(shape) * dtype.itemsize))
    # frombuffer takes no empty buffer
    return torch.frombuffer(raw, dtype=dtype).view(shape) if raw else torch.zeros(shape, dtype=dtype)


def _read_weight(stream: io.BytesIO, shape: list[int], values: int, zero: int | None, *parts: int) -> Tensor:
    """A layer's weight; `parts` are (symbols, bytes) of its indices and, if there are four numbers, of its gaps."""
    codebook = np.frombuffer(stream.read(4 * values), dtype=np.float32)
    coded = []
    for count, size, alphabet in zip(parts[::2], parts[1::2], (values, GAPS), strict=False):
        lengths = np.frombuffer(stream.read(alphabet), dtype=np.uint8)
        coded.append(HuffmanCoded(lengths, count, stream.read(size)))
    indices = decode_indices(CodedIndices(coded[0], coded[1] if len(coded) > 1 else None), math.prod(shape), zero)
    return torch.from_numpy(codebook[indices].reshape(shape))
