import numpy as np
import pytest

from compression.nn.quantized.huffman import HuffmanCoded, canonical_codes, code_lengths, decode, encode


def test_lengths_of_a_code_by_hand():
    # Huffman's tree of 5, 2, 1, 1: the rarest two join, then with the 2, then with the 5.
    assert code_lengths(np.array([5, 1, 2, 0, 1])).tolist() == [1, 3, 2, 0, 3]


def test_codes_of_equal_length_are_consecutive():
    assert canonical_codes(np.array([1, 3, 2, 0, 3], dtype=np.uint8)).tolist() == [0b0, 0b110, 0b10, 0, 0b111]


def test_bits_by_hand():
    coded = encode(np.array([0, 0, 1, 0, 2, 4, 0, 2, 0]), 5)
    assert coded.lengths.tolist() == [1, 3, 2, 0, 3]
    assert coded.bits == bytes([0b00110010, 0b11101000])  # 0 0 110 0 10 111 0 10 0, and no bit left over


@pytest.mark.parametrize("alphabet", [1, 2, 33, 256])
@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_decoding_restores_the_symbols(alphabet, count):
    symbols = np.random.default_rng(count).integers(alphabet, size=count)
    assert np.array_equal(decode(encode(symbols, alphabet)), symbols)


def test_skewed_symbols_are_restored_and_take_little_more_than_their_entropy():
    chances = 0.5 ** np.arange(1, 25)
    symbols = np.random.default_rng(0).choice(24, size=270_000, p=chances / chances.sum())
    coded = encode(symbols, 24)
    assert np.array_equal(decode(coded), symbols)
    share = np.bincount(symbols) / len(symbols)
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * len(symbols) / 8
    assert entropy <= len(coded.bits) < entropy * 1.01 + 1


def test_the_longest_codes_are_decoded():
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(np.array(counts))
    assert lengths.max() == 29
    assert (2.0 ** -lengths.astype(float)).sum() == 1  # Kraft: a complete code
    symbols = np.array([0, 29, 1, 28, 0, 15])
    codes = canonical_codes(lengths)
    text = "".join(format(int(codes[s]), f"0{lengths[s]}b") for s in symbols)
    bits = np.packbits(np.array([int(bit) for bit in text], dtype=np.uint8)).tobytes()
    assert decode(HuffmanCoded(lengths, len(symbols), bits)).tolist() == symbols.tolist()


def test_bits_that_end_early_are_refused():
    coded = encode(np.arange(40) % 5, 5)
    with pytest.raises(ValueError, match="end before the last symbol"):
        decode(HuffmanCoded(coded.lengths, 400, coded.bits))
    with pytest.raises(ValueError, match="not those of the symbols"):
        decode(HuffmanCoded(coded.lengths, 20, coded.bits))
