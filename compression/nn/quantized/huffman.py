"""Canonical Huffman codes over small non-negative integers. Huffman 1952; Han et al. 2016, section 4.

Only the code lengths are stored beside the bits: codes of equal length are consecutive numbers in the order of their
symbols, so that the lengths determine the code.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 32  # bits decoded at a time, the longest code: a longer one takes millions of symbols to arise


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the length in bits of each symbol's code, `(symbols,)`, 0 for those that do not occur.

    `counts` `(symbols,)` are their frequencies. A single symbol gets one bit. Raises ValueError if a code would be
    longer than 32 bits.
    """
    lengths = np.zeros(len(counts), dtype=np.uint8)
    order = itertools.count()
    # The number decides between equal counts: lists of symbols are never compared, and the code is always the same.
    heap = [(int(counts[s]), next(order), [int(s)]) for s in np.flatnonzero(counts)]
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, _, left), (two, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        # One bit more for every symbol below the new node.
        lengths[left + right] += 1
        heapq.heappush(heap, (one + two, next(order), left + right))
    if lengths.size and lengths.max() > WINDOW:
        raise ValueError(f"a code of {lengths.max()} bits is longer than {WINDOW}")
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the code of each symbol as a number of `lengths` bits, `(symbols,)`, 0 for those without one."""
    codes = np.zeros(len(lengths), dtype=np.uint64)
    code, previous_length = 0, 0
    for symbol in _canonical_order(lengths):
        code <<= int(lengths[symbol]) - previous_length
        codes[symbol], previous_length = code, int(lengths[symbol])
        code += 1
    return codes


def _canonical_order(lengths: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sort the symbols that have a code by its length, then by symbol."""
    order = np.argsort(lengths, kind="stable")
    return order[lengths[order] > 0]


@dataclass(frozen=True)
class HuffmanCoded:
    """Encoded symbols: highest bit of each code first, the last byte padded with zeros."""

    lengths: NDArray[np.uint8]
    count: int
    bits: bytes

    @property
    def size(self) -> int:
        """Bytes of the bits and the code lengths together."""
        return len(self.bits) + len(self.lengths)


def encode(symbols: NDArray[np.int64], alphabet: int) -> HuffmanCoded:
    """Encode `symbols` (any shape, flattened), each in 0..alphabet-1, with the shortest prefix code for them."""
    flat = symbols.ravel()
    lengths = code_lengths(np.bincount(flat, minlength=alphabet))
    widths, codes = lengths[flat].astype(np.int64), canonical_codes(lengths)[flat]
    ends = np.cumsum(widths)
    # Each bit of the stream belongs to one symbol; its position counts from the end of that symbol's code.
    positions = np.repeat(ends, widths) - np.arange(ends[-1] if len(ends) else 0) - 1
    stream = (np.repeat(codes, widths) >> positions.astype(np.uint64)) & np.uint64(1)
    return HuffmanCoded(lengths, len(flat), np.packbits(stream.astype(np.uint8)).tobytes())


def decode(coded: HuffmanCoded) -> NDArray[np.int64]:
    """Return the symbols, `(count,)`. Raises ValueError if the bits are not those of so many symbols."""
    if not coded.count:
        return np.zeros(0, dtype=np.int64)
    ordered, lengths = _canonical_order(coded.lengths), coded.lengths.astype(np.int64)
    codes = canonical_codes(coded.lengths)
    # Padded to a full window, the codes are sorted, and each is the least number that begins with it.
    least = codes[ordered] << (WINDOW - lengths[ordered]).astype(np.uint64)
    # Every bit is looked up as if a code began there, all at once; the loop only hops from one code to the next.
    found = np.searchsorted(least, _windows(coded.bits), side="right") - 1
    steps = lengths[ordered][found].tolist()  # Python's integers: faster than items of an array
    starts, position, total = [], 0, len(steps)
    for _ in range(coded.count):
        if position >= total:
            raise ValueError("the bits end before the last symbol")
        starts.append(position)
        position += steps[position]
    if -(-position // 8) != len(coded.bits):
        raise ValueError("the bits are not those of the symbols that they should hold")
    return ordered[found[starts]]


def _windows(stream: bytes) -> NDArray[np.uint64]:
    """Return the `WINDOW` bits from each bit of the stream on as numbers, `(8 * bytes,)`; zeros follow its end."""
    padded = np.frombuffer(stream + bytes(8), dtype=np.uint8).astype(np.uint64)
    count = len(stream)
    # A window of 32 bits that begins at any of a byte's 8 bits lies within 5 bytes.
    wide = sum((padded[i : i + count] << np.uint64(8 * (4 - i)) for i in range(5)), np.zeros(count, dtype=np.uint64))
    shifts = (8 - np.arange(8)).astype(np.uint64)
    return ((wide[:, None] >> shifts) & np.uint64(2**WINDOW - 1)).ravel()
