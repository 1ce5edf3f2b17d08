"""A text classifier without attention: a small student for large encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.models.width import scale_channels
from compression.nn.recurrent import BiLSTM


class TextLSTM(nn.Module):
    """An embedding, a bidirectional LSTM, a linear layer with a ReLU on its last states, and a linear layer.

    Tang et al. 2019, arXiv:1903.12136, section 3.1, but with random initial embeddings. Takes `input_ids` and
    `attention_mask`, each `(batch, length)` and padded on the right; returns logits `(batch, outputs)`.
    """

    def __init__(self, outputs: int, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(0.3)
        self.lstm = BiLSTM(embedding, hidden)
        self.hidden, self.relu = nn.Linear(2 * hidden, hidden), nn.ReLU()
        self.fc = nn.Linear(hidden, outputs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,  # noqa: ARG002 - accepted because BERT's tokenizers give it
    ) -> Tensor:
        """Return the logits. `token_type_ids` have no effect: a separator token also tells two texts apart."""
        lengths = attention_mask.sum(1)
        states = self.lstm(self.dropout(self.embedding(input_ids)), lengths)  # (batch, length, 2 * hidden)
        forwards, backwards = states.chunk(2, 2)
        # The forward LSTM ends at the last token, the backward one at the first.
        last = forwards.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, forwards.shape[2])).squeeze(1)
        hidden = self.relu(self.hidden(torch.cat([last, backwards[:, 0]], 1)))
        logits: Tensor = self.fc(self.dropout(hidden))
        return logits


def lstm(outputs: int, vocabulary: int, width: float = 1.0) -> TextLSTM:
    """Embeddings of size 128, and 256 LSTM units per direction, times `width`."""
    return TextLSTM(outputs, vocabulary, *scale_channels((128, 256), width))
