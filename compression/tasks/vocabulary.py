"""A tokenizer made from the training texts: words by frequency. Needs no network, and the same texts give the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from transformers import BertTokenizer

from compression.models import TRAINING_WORDS
from compression.tasks.text import TableTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = 20_000  # words: an embedding of 128 takes 10 MB
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
