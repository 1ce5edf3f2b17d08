"""A BERT of a few thousand weights with a WordPiece tokenizer, saved as the hub's libraries save one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "the", "film", "was", "good", "bad", "not", "a", "very", "##ly", "dull", "people", "."]


def save_bert(folder: Path, classes: int = 0) -> str:
    """Save a random encoder, or a classifier where `classes` are given, with its tokenizer; the folder's name."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=classes or 2,
    )
    (BertForSequenceClassification if classes else BertModel)(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    return str(folder)
