"""A text classifier without attention: the small student of large encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.models.width import scaled
from compression.nn.recurrent import BiLSTM


class TextLSTM(nn.Module):
    """Word vectors, an LSTM in both directions, a linear layer with a ReLU on its last states, a linear layer.

    Tang et al. 2019, arXiv:1903.12136, section 3.1, but its vectors begin at random. Takes what a tokenizer gives,
    `input_ids` and `attention_mask` `(batch, length)`, filled up at the end, and gives logits `(batch, outputs)`.
    """

    def __init__(self, outputs: int, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(0.3)
        self.lstm = BiLSTM(embedding, hidden)
        self.hidden, self.relu = nn.Linear(2 * hidden, hidden), nn.ReLU()
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """`token_type_ids` change nothing: a mark lies between two texts as well."""
        lengths = attention_mask.sum(1)
        states = self.lstm(self.dropout(self.embedding(input_ids)), lengths)
        ahead, back = states.chunk(2, 2)
        last = ahead.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, ahead.shape[2])).squeeze(1)
        return self.fc(self.dropout(self.relu(self.hidden(torch.cat([last, back[:, 0]], 1)))))


def lstm(outputs: int, vocabulary: int, width: float = 1.0) -> TextLSTM:
    """With 128 numbers a word and 256 units each way."""
    return TextLSTM(outputs, vocabulary, *scaled((128, 256), width))
