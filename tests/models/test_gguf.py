"""A language model in a GGUF file answers as the one of transformers that it was made of, or is refused."""

import os
import resource
import struct
from types import SimpleNamespace

import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.models import gguf, gguf_tokenizer, huggingface, storage
from compression.nn.inputs import forward
from tests.conftest import stripes_task
from tests.models import tiny_gguf

ANY = SimpleNamespace(takes_images=False, predicts_tokens=True, name="language/x", tokenizer=None)
IDS = {"input_ids": torch.tensor([[3, 250, 17, 99, 260, 4, 4, 31], [9, 8, 7, 6, 5, 4, 3, 2]])}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_gives_the_logits_of_the_model_that_it_was_made_of(path, tied):
    expected = tiny_gguf.write_llama(path, tied)
    model = models.build(f"gguf:{path}", ANY)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(forward(model, IDS), forward(expected, IDS))


def test_it_is_stored_and_reloaded_without_the_file(path, tmp_path):
    tiny_gguf.write_llama(path)
    model = gguf.load(f"gguf:{path}", ANY)
    storage.save(model, tmp_path / "stored", {})
    path.unlink()
    with torch.no_grad():
        assert torch.equal(forward(storage.load(tmp_path / "stored"), IDS), forward(model, IDS))


def test_the_tokenizer_of_byte_pairs_is_that_of_the_file(path):
    tiny_gguf.write_llama(path)
    own, tokens, positions = huggingface.load_language_tokenizer(f"gguf:{path}")
    expected = tiny_gguf.tokenizer()
    text = "it's  the quick 1234 foxes,\n\n\tÄ 漢 over"
    assert own(text).input_ids == expected(text).input_ids
    assert own.decode(own(text).input_ids) == text
    assert (tokens, positions) == (len(expected), 128)


def test_digits_are_split_where_the_file_says_so(path):
    tiny_gguf.write_llama(path, **{"tokenizer.ggml.pre": "smollm"})
    own, _, _ = huggingface.load_language_tokenizer(f"gguf:{path}")
    assert " 1234" in tiny_gguf.TEXT
    assert own.tokenize(" 1234") == ["Ġ", "1", "2", "3", "4"]


def test_control_tokens_are_found_whole(path):
    words = [*map(chr, range(33, 60)), "Ġ", "<|end|>", "<tool>"]
    own = gguf_tokenizer.make(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": words,
            "tokenizer.ggml.token_type": [1] * 28 + [3, 4],
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.eos_token_id": 28,
        },
        "x",
    )
    assert own("1<|end|>2<tool>").input_ids == [words.index("1"), 28, words.index("2"), 29]
    assert own.eos_token == "<|end|>"
    assert own.decode([28, 29], skip_special_tokens=True) == "<tool>"


def test_sentencepieces_are_merged_by_their_scores():
    # Of ▁hello, he (-1) is merged first, then ll (-2), hell (-3), hello (-4), ▁hello (-5): hel (-6) comes too late.
    pieces = {"<unk>": 0, "<0xC3>": 0, "<0x84>": 0, "▁": -9, "h": -9, "e": -9, "l": -9, "o": -9, "he": -1, "ll": -2}
    pieces |= {"hell": -3, "hello": -4, "▁hello": -5, "hel": -6}
    names = list(pieces)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [float(score) for score in pieces.values()],
        "tokenizer.ggml.unknown_token_id": 0,
    }
    own = gguf_tokenizer.make(metadata, "x")
    assert own.tokenize("hello hell") == ["▁hello", "▁", "hell"]
    assert own.tokenize("helo") == ["▁", "hel", "o"]
    assert own.tokenize("Ä") == ["▁", "<0xC3>", "<0x84>"]  # no piece: its bytes
    assert own.decode(own("hello hell").input_ids) == "hello hell"
    bare = gguf_tokenizer.make(metadata | {"tokenizer.ggml.add_space_prefix": False}, "x")
    assert bare.tokenize("hello") == ["hello"]


def test_a_text_in_another_vocabulary_is_refused(path):
    tiny_gguf.write_llama(path)
    other = SimpleNamespace(**vars(ANY) | {"tokenizer": tiny_gguf.byte_pairs("something else altogether")})
    with pytest.raises(UserError, match="reads another vocabulary"):
        gguf.load(f"gguf:{path}", other)


def test_another_task_is_refused(path):
    for shape in ((1, 8, 8), ()):
        with pytest.raises(UserError, match=r"predicts the next token, and glue/x is another task"):
            models.build(f"gguf:{path}", stripes_task(name="glue/x", input_shape=shape))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"architecture": "gemma3"}, "the architecture gemma3; only llama is read"),
        ({"llama.rope.scaling.type": "yarn"}, r"a Llama with rope.scaling.type, which is not read"),
        ({"llama.expert_count": 8}, "a Llama with expert_count"),
        ({"llama.rope.dimension_count": 8}, "parts of unequal size"),
        ({"llama.block_count": 3}, "is described and not stored"),
        ({"llama.block_count": 10**6}, "more than 5,000 layers"),
        ({"llama.block_count": None}, "block_count"),
        ({"llama.block_count": "two"}, "no whole GGUF file"),
        ({"llama.embedding_length": 2**30}, "parts of unequal size"),
        ({"llama.feed_forward_length": 2**31}, "is described as"),
        ({"llama.attention.head_count": 0}, "no whole GGUF file"),
        ({"llama.rope.freq_base": float("nan")}, "a constant of nan"),
    ],
)
def test_what_is_not_read_is_refused_in_a_sentence(path, entries, said):
    tiny_gguf.write_llama(path, **entries)
    assert "\n" not in refusal(path, said)


@pytest.mark.parametrize(
    ("entries", "said"),
    [({"tokenizer.ggml.pre": "tekken"}, "by the rules of tekken"), ({"tokenizer.ggml.model": "bert"}, "the kind bert")],
)
def test_a_tokenizer_that_is_not_read_is_refused_in_a_sentence(path, entries, said):
    tiny_gguf.write_llama(path, **entries)
    with pytest.raises(UserError, match=said):
        huggingface.load_language_tokenizer(f"gguf:{path}")


def refusal(path, said="."):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said) as refused:
        gguf.load(f"gguf:{path}", ANY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # in kB: half a GB
    return str(refused.value)


def test_a_file_cut_anywhere_is_refused(path):
    tiny_gguf.write_llama(path)
    whole = path.read_bytes()
    for length in (*range(0, 64), *range(64, len(whole), len(whole) // 50), len(whole) - 4):
        path.write_bytes(whole[:length])
        assert "\n" not in refusal(path, "no whole GGUF file of a Llama")


NUMBERS, TEXTS, LISTS = 4, 8, 9
START = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not at all",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        START + struct.pack("<IIQ", LISTS, NUMBERS, 2**60),
        START + struct.pack("<IIQ", LISTS, TEXTS, 2**60),
        START + struct.pack("<IQ", TEXTS, 2**60),
        START + struct.pack("<IIQ", LISTS, LISTS, 1) + struct.pack("<IQ", LISTS, 1) * 100_000,
        START + struct.pack("<I", 99),
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0),
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 2**31),
    ],
)
def test_a_header_that_lies_is_refused_in_little_memory(path, content):
    path.write_bytes(content)
    assert "\n" not in refusal(path, "no whole GGUF file of a Llama")


def test_a_file_that_is_not_there_or_is_none_is_refused(path):
    assert "There is no file" in refusal(path)
    os.mkfifo(path)
    assert "pipe" in refusal(path)
    assert "folder" in refusal(path.parent)


def test_tensors_that_share_their_bytes_are_refused(path):
    header = struct.pack("<IQQ", 3, 200, 0)
    one = b"".join(
        struct.pack("<Q", 4) + f"t{i:03}".encode() + struct.pack("<IQIQ", 1, 2**12, 0, 0) for i in range(200)
    )
    path.write_bytes(b"GGUF" + header + one + b"\0" * 2**15)
    assert "lie upon one another" in refusal(path)
