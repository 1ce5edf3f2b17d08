"""Canonical Huffman codes over small whole numbers, as whole files of bits.  Huffman 1952; Han et al. 2016, section 4.

Only the lengths of the codes are kept beside the bits: codes of equal length are consecutive numbers in the order of
their symbols, so the lengths say it all.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 32  # bits looked at together; the frequencies of a code of that length would add up to millions of symbols


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bits of each symbol's code, `(symbols,)`, 0 for those that never occur; `counts` says how often each does.

    A single symbol gets one bit. Raises ValueError where a code would be longer than 32 bits.
    """
    lengths = np.zeros(len(counts), dtype=np.uint8)
    order = itertools.count()
    heap = [(int(counts[s]), next(order), [int(s)]) for s in np.flatnonzero(counts)]
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, _, left), (two, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (one + two, next(order), left + right))
    if lengths.size and lengths.max() > WINDOW:
        raise ValueError(f"a code of {lengths.max()} bits is longer than {WINDOW}")
    return lengths


def canonical(lengths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The code of each symbol as a number of `lengths` bits, `(symbols,)`, 0 for those without one."""
    codes = np.zeros(len(lengths), dtype=np.uint64)
    code, before = 0, 0
    for symbol in _in_order(lengths):
        code <<= int(lengths[symbol]) - before
        codes[symbol], before = code, int(lengths[symbol])
        code += 1
    return codes


def _in_order(lengths: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The symbols that have a code, by its length and then by number."""
    order = np.argsort(lengths, kind="stable")
    return order[lengths[order] > 0]


@dataclass(frozen=True)
class Coded:
    """Symbols as bits: highest bit of a code first, the last byte filled up with zeros."""

    lengths: NDArray[np.uint8]
    count: int
    bits: bytes

    @property
    def size(self) -> int:
        """Bytes of the bits and the lengths together."""
        return len(self.bits) + len(self.lengths)


def encode(symbols: NDArray[np.int64], alphabet: int) -> Coded:
    """The `symbols` (any shape, flattened), each in 0..alphabet-1, in the shortest code for them."""
    flat = symbols.ravel()
    lengths = code_lengths(np.bincount(flat, minlength=alphabet))
    widths, codes = lengths[flat].astype(np.int64), canonical(lengths)[flat]
    ends = np.cumsum(widths)
    # Each bit of the stream belongs to one symbol, and is so many places from the end of its code.
    places = np.repeat(ends, widths) - np.arange(ends[-1] if len(ends) else 0) - 1
    stream = (np.repeat(codes, widths) >> places.astype(np.uint64)) & np.uint64(1)
    return Coded(lengths, len(flat), np.packbits(stream.astype(np.uint8)).tobytes())


def decode(coded: Coded) -> NDArray[np.int64]:
    """The symbols, `(count,)`. Raises ValueError where the bits are not those of so many symbols."""
    if not coded.count:
        return np.zeros(0, dtype=np.int64)
    ordered, lengths = _in_order(coded.lengths), coded.lengths.astype(np.int64)
    codes = canonical(coded.lengths)
    # Filled up to a full window, the codes stand in their order, each at the first number that begins with it.
    firsts = codes[ordered] << (WINDOW - lengths[ordered]).astype(np.uint64)
    found = np.searchsorted(firsts, _windows(coded.bits), side="right") - 1
    steps = lengths[ordered][found].tolist()
    starts, place, total = [], 0, len(steps)
    for _ in range(coded.count):
        if place >= total:
            raise ValueError("the bits end before the last symbol")
        starts.append(place)
        place += steps[place]
    if -(-place // 8) != len(coded.bits):
        raise ValueError("the bits are not those of the symbols that they should hold")
    return ordered[found[starts]]


def _windows(stream: bytes) -> NDArray[np.uint64]:
    """The `WINDOW` bits that begin at each bit of the stream, as numbers; zeros follow its end."""
    padded = np.frombuffer(stream + bytes(8), dtype=np.uint8).astype(np.uint64)
    count = len(stream)
    wide = sum((padded[i : i + count] << np.uint64(8 * (4 - i)) for i in range(5)), np.zeros(count, dtype=np.uint64))
    shifts = (8 - np.arange(8)).astype(np.uint64)
    return ((wide[:, None] >> shifts) & np.uint64(2**WINDOW - 1)).ravel()
