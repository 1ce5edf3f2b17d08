"""The blocks of a model, as it calls them."""

import pytest
import torch
from torch import nn

from compression.errors import UserError
from compression.methods.blockwise.blocks import Arguments, find_blocks, map_tensors, short_example
from compression.nn.hooks import Call
from tests.conftest import tiny_bert, words_task
from tests.methods.blockwise.decoders import FORMS, make
from tests.methods.tiny_language import CONTEXT, language_task, tiny_lstm_lm

BLOCK = ("0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj"), ("0.self_attn.o_proj",)
FED_FORWARD = ("0.mlp.gate_proj", "0.mlp.up_proj"), ("0.mlp.down_proj",)


def example():
    return short_example(language_task().example(2))


def short_names(groups):
    return tuple(tuple(name.split("layers.")[-1].split("h.")[-1] for name in group.layers) for group in groups)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("llama", BLOCK + FED_FORWARD),
        ("qwen2", BLOCK + FED_FORWARD),
        ("opt", (BLOCK[0], ("0.self_attn.out_proj",), ("0.fc1",), ("0.fc2",))),
        ("gpt2", (("0.attn.c_attn",), ("0.attn.c_proj",), ("0.mlp.c_fc",), ("0.mlp.c_proj",))),
    ],
)
def test_layers_that_share_an_input_are_a_group_in_the_order_of_their_calls(form, expected):
    blocks = find_blocks(make(form), example())
    assert len(blocks.groups) == 2
    found = short_names(next(iter(blocks.groups.values())))
    assert [set(group) for group in found] == [set(group) for group in expected]


def test_an_encoder_has_blocks_too():
    blocks = find_blocks(tiny_bert(), short_example(words_task().example(2)))
    assert list(blocks.groups) == [f"bert.encoder.layer.{i}" for i in range(3)]
    assert not [name for name in blocks.layers if "classifier" in name or "pooler" in name]


def test_what_alone_feeds_a_group_is_known_and_what_others_read_is_not():
    sources = {
        g.layers[0].split("layers.0.")[-1]: g.sources
        for g in find_blocks(make("llama"), example()).groups["model.layers.0"]
    }
    assert sources["self_attn.q_proj"] == ("model.layers.0.input_layernorm",)
    assert "model.layers.0.mlp.up_proj" in sources["mlp.down_proj"]
    encoder = find_blocks(tiny_bert(), short_example(words_task().example(2))).groups["bert.encoder.layer.1"]
    assert encoder[0].sources == ()  # the residual reads the norm before them, too
    assert encoder[2].sources == ()


def test_blocks_with_masks_of_their_own_are_told_apart():
    blocks = find_blocks(make("gemma3_text"), short_example(language_task().example(2)))
    assert list(blocks.same_arguments.values()) == ["model.layers.0", "model.layers.1"]
    assert set(find_blocks(make("llama"), example()).same_arguments.values()) == {"model.layers.0"}


class Own(nn.Module):
    """Blocks in a list, called in an order of the test's choice."""

    def __init__(self, order=(0, 1), between=0.0):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2))
        self.order, self.between = order, between

    def forward(self, images):
        states = images.flatten(1)
        for i in self.order:
            states = self.layers[i](states + self.between)
        return states


def test_a_list_of_ones_own_is_walked():
    assert list(find_blocks(Own(), torch.randn(2, 4, 4)).groups) == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Own((1, 0)), "not called one after the other, once each"),
        (Own((0, 1, 1)), "not called one after the other, once each"),
        (Own((0,)), "not called one after the other, once each"),
        (Own(between=1.0), "do not each take what the one before returns"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), "is no transformer that can be compressed block by block"),
    ],
)
def test_what_is_no_chain_of_blocks_is_refused(model, reason):
    with pytest.raises(UserError, match=reason):
        find_blocks(model, torch.randn(2, 4, 4))


def test_blocks_that_read_more_of_each_other_are_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, states, first=None):
            made = self.fc(states)
            return made + (0 if first is None else first), made

    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Pair() for _ in range(2))

        def forward(self, images):
            states, first = self.layers[0](images.flatten(1))
            return self.layers[1](states, first=first)[0]

    with pytest.raises(UserError, match="read more of each other than the hidden states"):
        find_blocks(Crossed(), torch.randn(2, 4, 4))


def test_a_model_of_lstms_is_no_transformer():
    with pytest.raises(UserError, match="WordLSTM is no transformer"):
        find_blocks(tiny_lstm_lm(), example())


def test_a_short_example_is_cut_in_examples_and_tokens():
    inputs = {"input_ids": torch.zeros(5, 40), "attention_mask": torch.zeros(5, 40)}
    assert {tuple(t.shape) for t in short_example(inputs).values()} == {(2, CONTEXT)}


def test_arguments_are_split_from_the_hidden_states_and_given_back():
    class Named(nn.Module):
        def forward(self, hidden_states, shift):
            hidden_states += shift["by"][0]  # in place
            return (hidden_states,)

    given = torch.ones(2), {"by": (torch.ones(2),)}
    states, arguments = Arguments.split(Call("block", Named(), given, names=("hidden_states", "shift")))
    for _ in range(2):
        assert arguments.call(Named(), states).tolist() == [2.0, 2.0]
    assert arguments.map(lambda t: 3 * t).call(Named(), states).tolist() == [4.0, 4.0]
    assert map_tensors(lambda t: t + 1, [torch.zeros(1), None, "x"])[1:] == [None, "x"]


def test_every_form_has_blocks():
    for form in FORMS:
        assert len(find_blocks(make(form), example()).groups) == 2
