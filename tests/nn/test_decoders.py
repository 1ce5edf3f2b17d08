"""Decoders are cut as they compute: queries that share a key go with it, neurons with their gates, layers whole."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from compression.errors import UserError
from compression.models import storage
from compression.nn import transformer
from compression.nn.inputs import forward
from compression.nn.layers import count_parameters, tied_layers
from tests.methods.tiny_language import KINDS, TOKENS, tiny_decoder, tiny_lstm_lm, windows

GATED = ("llama", "mistral", "qwen2")
IDS = {"input_ids": windows(4, 0).inputs["input_ids"]}


@pytest.fixture
def make():
    """`make(kind)`: a decoder whose weights are large enough to tell heads apart."""

    def of(kind, **changes):
        torch.manual_seed(0)
        model = tiny_decoder(kind, **changes)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5 if parameter.ndim == 2 else 1)
        return model

    return of


def read_again(model, folder):
    storage.save(model, folder, {})
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model):
    return forward(model, IDS)


@pytest.mark.parametrize("kind", KINDS)
def test_its_parts_are_found(kind, make):
    model = make(kind)
    block = transformer.blocks(model)[1]
    assert (block.heads, block.head_size, block.neurons) == (4, 8, 48)
    assert block.head_groups == (2 if kind in GATED else 4)
    assert (block.gate is not None) == (kind in GATED)
    assert transformer.is_decoder(model)
    assert not transformer.emptied_layers(model)


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("keep", [[1], [0], []])
def test_cut_heads_answer_as_masked_ones_and_from_pretrained_reads_them(kind, keep, make, tmp_path):
    model, masked = make(kind), make(kind)
    for layer in range(2):
        columns = transformer.blocks(masked)[layer].output.weight.data.view(32, 2, 16)  # by key, with both its queries
        columns[:, [group for group in (0, 1) if group not in keep]] = 0
        transformer.cut_heads(model, layer, keep)
    torch.testing.assert_close(logits(model), logits(masked), rtol=1e-4, atol=1e-5)
    told = model.config
    assert (told.num_attention_heads, told.num_key_value_heads, told.head_dim) == (2, 1, 8)
    assert len(transformer.emptied_layers(model)) == (0 if keep else 2)
    torch.testing.assert_close(logits(read_again(model, tmp_path / "cut")), logits(model))
    assert not transformer.entries_unknown_to_transformers(model.config)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_neurons_answer_as_masked_ones_and_from_pretrained_reads_them(kind, make, tmp_path):
    model, masked, keep = make(kind), make(kind), list(range(0, 48, 3))
    for layer in range(2):
        down = transformer.blocks(masked)[layer].down.weight.data
        down[:, [neuron for neuron in range(48) if neuron not in keep]] = 0
        transformer.cut_ffn(model, layer, keep)
    torch.testing.assert_close(logits(model), logits(masked), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(read_again(model, tmp_path / "cut")), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_layer_is_skipped_and_from_pretrained_reads_the_others(kind, make, tmp_path):
    model, whole = make(kind, num_hidden_layers=3), make(kind, num_hidden_layers=3)
    for linear in (transformer.blocks(whole)[1].output, transformer.blocks(whole)[1].down):
        linear.weight.data.zero_()  # what the second layer adds to the hidden states
        if linear.bias is not None:
            linear.bias.data.zero_()
    transformer.keep_layers(model, [0, 2])
    torch.testing.assert_close(logits(model), logits(whole))
    torch.testing.assert_close(logits(read_again(model, tmp_path / "cut")), logits(model))


def test_the_kinds_of_a_qwens_layers_go_with_them(make, tmp_path):
    model = make("qwen2", num_hidden_layers=3, use_sliding_window=True, max_window_layers=1, sliding_window=4)
    kinds = model.config.layer_types
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention"]
    transformer.keep_layers(model, [0, 2])
    assert model.config.layer_types == [kinds[0], kinds[2]]
    torch.testing.assert_close(logits(read_again(model, tmp_path / "cut")), logits(model))


def test_layers_of_different_widths_reload_and_the_config_says_that_only_the_lab_reads_them(make, tmp_path):
    model = make("llama", num_attention_heads=4, num_key_value_heads=4)
    transformer.cut_heads(model, 0, [0, 1, 3])
    transformer.cut_ffn(model, 1, range(8))
    assert transformer.entries_unknown_to_transformers(model.config) == ["heads_per_layer", "ffn_per_layer"]
    assert (model.config.heads_per_layer, model.config.ffn_per_layer) == ([3, 4], [48, 8])
    again = storage.load(storage.save(model, tmp_path / "cut", {}))
    torch.testing.assert_close(logits(again), logits(model))


def test_the_output_layer_that_shares_the_weight_of_an_embedding_is_known(make):
    assert tied_layers(make("llama")) == {"lm_head": "model.embed_tokens"}
    assert tied_layers(make("gpt2")) == {"lm_head": "transformer.wte"}
    assert tied_layers(tiny_lstm_lm()) == {"fc": "embedding"}
    assert not tied_layers(make("llama", tie_word_embeddings=False))


def test_what_reads_both_ways_refuses_it_in_a_sentence(make):
    with pytest.raises(UserError, match="l0 has no gates for a LlamaForCausalLM, which reads from left to right"):
        transformer.require_encoder(make("llama"), "l0 has no gates for")


@pytest.mark.parametrize("kind", KINDS)
def test_a_thinner_copy_has_whole_heads_of_the_same_size(kind, make, tmp_path):
    from compression.methods.distill.students.copies import thinner_copy

    model = make(kind)
    thin = thinner_copy(model, 0.5).eval()
    block = transformer.blocks(thin)[0]
    assert (block.heads, block.head_size, block.neurons, transformer.hidden_size(thin)) == (2, 8, 24, 16)
    assert block.head_groups == (1 if kind in GATED else 2)
    assert logits(thin).shape == (4, 16, TOKENS)
    assert count_parameters(thin) < count_parameters(model) / 2
    torch.testing.assert_close(logits(storage.load(storage.save(thin, tmp_path / "thin", {}))), logits(thin))
    assert logits(copy.deepcopy(model)).equal(logits(make(kind)))  # the teacher stays as it was
