"""Small language models to train from scratch: a word model of LSTMs, and a decoder of the form of Llama."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.models.width import scale_channels
from compression.nn.recurrent import Direction


class WordLSTM(nn.Module):
    """An embedding, LSTM layers, and a linear layer that shares its weight with the embedding.

    The word model of PyTorch's tutorials (Zaremba et al. 2014, arXiv:1409.2329; tied weights: Press and Wolf 2016,
    arXiv:1608.05859). Takes `input_ids` `(batch, length)`; returns logits `(batch, length, tokens)`.
    """

    def __init__(self, tokens: int, hidden: int, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, hidden)
        self.dropout = nn.Dropout(0.2)
        self.layers = nn.ModuleList(Direction(hidden, hidden) for _ in range(layers))
        self.fc = nn.Linear(hidden, tokens)
        self.fc.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # as there; N(0, 1) starts at a perplexity of thousands

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of the token after each one."""
        states = self.dropout(self.embedding(input_ids))
        every = torch.ones_like(input_ids)  # no padding: windows are full
        for layer in self.layers:
            states = self.dropout(layer(states, every))
        logits: Tensor = self.fc(states)
        return logits


def lstm_lm(tokens: int, width: float = 1.0) -> WordLSTM:
    """Two layers of 200 units, times `width`: those of the tutorial."""
    [hidden] = scale_channels((200,), width)
    return WordLSTM(tokens, hidden)


def decoder(tokens: int, width: float = 1.0) -> nn.Module:
    """Four layers of 128, four heads in two groups, times `width`: trains on 7,000 tokens a second and core.

    Of the form of Llama (Touvron et al. 2023, arXiv:2302.13971) with grouped queries (Ainslie et al. 2023,
    arXiv:2305.13245) and tied embeddings.
    """
    from transformers import LlamaConfig

    from compression.models import huggingface

    # Whole heads of 32, two to a group.
    groups = max(1, round(2 * width))
    hidden = 64 * groups
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=4,
        num_attention_heads=2 * groups,
        num_key_value_heads=groups,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return huggingface.build_from_config(config.to_dict(), head=huggingface.NEXT_TOKEN)
