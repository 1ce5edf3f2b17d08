"""An LSTM layer built from linear layers, so that pruning, quantization and decomposition find its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gates(nn.Linear):
    """The input or recurrent weights of an LSTM: rows of the input, forget, cell and output gates.

    A class of its own, because its inputs come step by step: quantizers that round the inputs of linear layers must
    leave it out, as no integer kernel exists for it.
    """


class Direction(nn.Module):
    """An LSTM in one direction. `input` and `hidden` compute the gates; other layers of their shapes may replace them.

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates in the order of `nn.LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        # One bias is enough: nn.LSTM adds its two before anything else happens to them.
        self.input, self.hidden = Gates(input_size, 4 * hidden_size), Gates(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the states `(batch, length, hidden)` for `values` `(batch, length, input)`.

        States are zero where `mask` `(batch, length)` is 0.
        """
        state = cell = values.new_zeros(len(values), self.hidden_size)
        states = []
        # The inputs' part of all steps is one product; only that of the states has to be done step by step.
        steps = zip(self.input(values).unbind(1), mask.to(values.dtype).unsqueeze(2).unbind(1), strict=True)
        for gates, is_token in steps:
            input_gate, forget_gate, candidate, output_gate = (gates + self.hidden(state)).chunk(4, 1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
            # The cell runs on: padding comes last in both directions, so that nothing of it reaches a token.
            state = output_gate.sigmoid() * cell.tanh() * is_token
            states.append(state)
        return torch.stack(states, 1)


class BiLSTM(nn.Module):
    """A bidirectional LSTM layer over sequences of different lengths, padded at their ends.

    Trains as fast on a CPU as `nn.LSTM` on packed sequences (27 words, 128 to 300 units).
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        # The forward and the backward direction; stored models have these names.
        self.ahead, self.back = Direction(input_size, hidden_size), Direction(input_size, hidden_size)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the states `(batch, length, 2 hidden)`, forward then backward, for `(batch, length, input)`.

        They are zero beyond `lengths` `(batch,)`.
        """
        positions = torch.arange(values.shape[1], device=values.device)
        length = lengths.unsqueeze(1)
        mask = positions < length
        # Each text turned round within its own length, padding left at its place: its own inverse, which `_gather` uses
        # twice.
        reversed_positions = torch.where(mask, length - 1 - positions, positions)
        ahead, back = self.ahead(values, mask), self.back(_gather(values, reversed_positions), mask)
        return torch.cat([ahead, _gather(back, reversed_positions)], 2)


def _gather(values: Tensor, positions: Tensor) -> Tensor:
    """Reorder `values` `(batch, length, size)` to those at `positions` `(batch, length)`."""
    return values.gather(1, positions.unsqueeze(2).expand(-1, -1, values.shape[2]))
