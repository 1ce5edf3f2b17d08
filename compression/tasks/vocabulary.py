"""A tokenizer made from the training texts: words by frequency. Needs no network, and the same texts give the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from compression.models import TRAINING_WORDS
from compression.tasks.text import TableTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = 20_000  # words: covers 97% of the running words of an English corpus and keeps an embedding of 128 at 10 MB
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def word_tokenizer(texts: Iterable[str], size: int = SIZE) -> TableTokenizer:
    """Return a tokenizer with the `size` most frequent words of `texts`, in lower case; others are unknown.

    Splits at blanks and punctuation, and Chinese text into characters, as BERT's tokenizer does first.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(SPECIAL)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    whole = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        name_or_path=TRAINING_WORDS,
        model_input_names=["input_ids", "attention_mask"],
    )
    return TableTokenizer(whole, ("input_ids", "attention_mask"))
