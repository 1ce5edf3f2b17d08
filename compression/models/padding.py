"""The padding of texts: one token has to stand for it to a tokenizer and to the model that reads its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers import AutoModelForSequenceClassification

from compression.errors import UserError
from compression.models import skeleton

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TENSORS = 1_000  # of a model that reads text, at most: BERT-large has 393


def share_padding(name: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model called `name` take the tokenizer's padding for padding: sets `config.pad_token_id`, in place.

    By that id decoders (GPT-2, Llama, OPT) find the last token of a text, whose hidden state they classify. Raises
    UserError for a model that has no such token, or that counts the positions of a text from another one.
    """
    padding, own = tokenizer.pad_token_id, config.pad_token_id
    if padding is None or padding == own:
        return
    words = getattr(config.get_text_config(), "vocab_size", None)
    if words and padding >= words:
        raise UserError(
            f"{name} has no embedding for the padding of its tokenizer, token {padding} of {words}: save the model "
            "after resize_token_embeddings, or give the tokenizer a pad_token that the model knows."
        )
    if any(table.padding_idx is not None for table in position_tables(config)):
        raise UserError(
            f"{name} counts positions from its padding, token {own}, and its texts are padded with token {padding}: "
            "make pad_token_id in its config.json and pad_token of the tokenizer one token."
        )
    config.pad_token_id = padding


def position_tables(config: PretrainedConfig) -> list[nn.Embedding]:
    """Return the embeddings of absolute positions of a model with `config`, without their weights."""
    with skeleton.without_weights(TENSORS):  # 0.5 s at most
        build: Callable[..., PreTrainedModel] = AutoModelForSequenceClassification.from_config
        model = build(config, attn_implementation="eager", trust_remote_code=False)
    embeddings = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return [m for name, m in embeddings.items() if "relative" not in name and "position" in name]
