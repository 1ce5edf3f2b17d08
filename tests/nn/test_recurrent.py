import pytest
import torch
from torch import nn

from compression.nn import layers
from compression.nn.recurrent import BiLSTM
from tests.conftest import tiny_lstm


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return BiLSTM(5, 7)


VALUES = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([9, 3, 1, 6])


def torchs(layer):
    """torch's own layer with the same weights."""
    made = nn.LSTM(layer.input_size, layer.hidden_size, batch_first=True, bidirectional=True)
    for direction, ending in ((layer.ahead, "l0"), (layer.back, "l0_reverse")):
        values = {"weight_ih": direction.input.weight, "bias_ih": direction.input.bias}
        values |= {"weight_hh": direction.hidden.weight, "bias_hh": torch.zeros(4 * layer.hidden_size)}
        made.load_state_dict({f"{name}_{ending}": value for name, value in values.items()}, strict=False)
    return made


def test_states_equal_those_of_torch_for_packed_sequences(layer):
    packed = nn.utils.rnn.pack_padded_sequence(VALUES, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(torchs(layer)(packed)[0], batch_first=True)
    torch.testing.assert_close(layer(VALUES, LENGTHS), expected)


def test_padding_changes_nothing(layer):
    other = VALUES.clone()
    other[1, 3:], other[2, 1:] = 100.0, -100.0
    assert torch.equal(layer(VALUES, LENGTHS), layer(other, LENGTHS))
    assert layer(VALUES, LENGTHS)[1, 3:].count_nonzero() == 0


def test_a_text_gets_the_same_logits_alone_and_in_a_batch_with_longer_ones():
    model = tiny_lstm()
    ids = torch.randint(1, 24, (3, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    together = model(ids, mask)
    torch.testing.assert_close(together[:1], model(ids[:1, :4], mask[:1, :4]))
    torch.testing.assert_close(together, model(ids, mask, token_type_ids=mask))


def test_every_step_counts_among_the_multiply_accumulates():
    model = tiny_lstm()
    ids = torch.ones(1, 8, dtype=torch.long)
    found = layers.count_macs(model, {"input_ids": ids, "attention_mask": ids})
    word, units = model.embedding.embedding_dim, model.lstm.hidden_size
    # The model looks its words up, eight steps of two directions, then two linear layers.
    assert found["lstm.ahead.input"] == found["lstm.back.input"] == 8 * 4 * units * word
    assert found["lstm.ahead.hidden"] == 8 * 4 * units * units
    assert found["hidden"] + found["fc"] == 2 * units * units + 3 * units
    assert found[""] == 0
