"""Tiny untrained text classifiers of any architecture, saved with a tokenizer as the hub's libraries save them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [
    *SPECIAL,
    *["a", "the", "good", "bad", "film", "number", "is", "very", "not", "and"],
    *map(str, range(40)),
]
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 140,
    "vocab_size": len(VOCABULARY),
    "pad_token_id": 0,
}
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def tokenizer(words: Sequence[str] = VOCABULARY, inputs: Sequence[str] = INPUTS) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=list(inputs), **names)


def save_classifier(
    folder: Path,
    labels: Sequence[str] = ("LABEL_0", "LABEL_1"),
    kind: str = "bert",
    change: Callable[[nn.Module], None] | None = None,
    words: Sequence[str] | None = VOCABULARY,
    inputs: Sequence[str] = INPUTS,
    **config,
) -> str:
    """Save a classifier whose outputs are called `labels`, without a tokenizer where `words` is None."""
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    made = AutoConfig.for_model(kind, **(SIZE | named | config))
    model = AutoModelForSequenceClassification.from_config(made)
    if change:
        change(model)
    model.save_pretrained(folder)
    if words:
        tokenizer(words, inputs).save_pretrained(folder)
    return str(folder)


def always(output: int) -> Callable[[nn.Module], None]:
    """What makes a classifier answer with one output, whatever it is given, and tell all outputs apart."""

    def change(model: nn.Module) -> None:
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        assert head.out_features == model.config.num_labels
        nn.init.zeros_(head.weight)
        if head.bias is None:
            raise AssertionError("the head has no bias to answer with")
        head.bias.data.copy_(torch.arange(head.out_features) / 4)
        head.bias.data[output] = 5.0

    return change
