"""Tokenizers made from the training texts. They need no network, and the same texts give the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from compression.models import TRAINING_WORDS
from compression.tasks.text import TableTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIZE = 20_000  # words: an embedding of 128 takes 10 MB
# Of language models: words as in PyTorch's word model, whose WikiText-2 has 33,278; and pieces of words.
WORDS, BYTE_PAIRS = 10_000, 1_024
END = "<end>"  # of a text
MOST_CHARACTERS = 20_000_000  # of a text that byte pairs are counted in
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(texts: Iterable[str], size: int = SIZE) -> TableTokenizer:
    """Return a tokenizer with the `size` most frequent words of `texts`, in lower case; others are unknown.

    Splits at blanks and punctuation, and Chinese text into characters, as BERT's tokenizer does first.
    """
    splitter = _bert_tokenizer(()).backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        words = splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(SPECIAL)]
    return TableTokenizer(_bert_tokenizer(frequent), ("input_ids", "attention_mask"))


def _bert_tokenizer(words: Iterable[str]) -> BertTokenizer:
    """Return BERT's tokenizer with these words; without pieces of words, all others are unknown."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    return BertTokenizer(vocab=vocabulary, name_or_path=TRAINING_WORDS)


def corpus_words(text: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the most frequent words of `text`, as they are between blanks, and the end of a line."""
    word = Regex(r"\n|[^\s]+")
    splitter = pre_tokenizers.Split(word, "removed", invert=True)
    counts = Counter(found for found, _ in splitter.pre_tokenize_str(text))
    frequent = sorted(counts, key=lambda found: (-counts[found], found))[: WORDS - 2]
    vocabulary = {found: i for i, found in enumerate(dict.fromkeys(("<unk>", END, *frequent)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return _made(tokenizer, unk_token="<unk>")


def byte_pairs(text: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and their most frequent pairs in `text`; no text is unknown to it.

    Sennrich et al. 2015, arXiv:1508.07909, on bytes as in Radford et al. 2019, section 2.2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIRS, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    # By lines: a piece of text is split into words whole, which takes 50 times its memory.
    tokenizer.train_from_iterator(text[:MOST_CHARACTERS].splitlines(keepends=True), trainer)
    return _made(tokenizer)


def _made(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, name_or_path=TRAINING_WORDS, eos_token=END, **special)
