"""What is cut out leaves the logits of the model in which it is masked, and the config tells what is left."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from compression import methods
from compression.errors import UserError
from compression.models import storage
from compression.nn import layers, transformer
from compression.nn.inputs import forward
from tests.conftest import tiny_bert, words, words_task

FORMS = {
    "bert": {},
    "roberta": {"model_type": "roberta", "pad_token_id": 0},
    "electra": {"model_type": "electra", "embedding_size": 12},
    "electra without projection": {"model_type": "electra", "embedding_size": 32},
    "ernie": {"model_type": "ernie"},
    "data2vec": {"model_type": "data2vec-text", "pad_token_id": 0},
    "prelayernorm": {"model_type": "roberta-prelayernorm", "pad_token_id": 0},
    "distilbert": {"model_type": "distilbert", "dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48},
}


@pytest.fixture(params=FORMS)
def model(request):
    torch.manual_seed(0)
    made = tiny_bert(**FORMS[request.param])
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def logits(model):
    return forward(model, next(words(16, 5).batches(16))[0]).detach()


def assert_same(one, other):
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [[0, 2], [3], []])
def test_cutting_heads_gives_the_logits_of_the_masked_model(model, keep):
    cut = copy.deepcopy(model)
    transformer.cut_heads(cut, 1, keep)
    block = transformer.blocks(model)[1]
    for head in set(range(4)) - set(keep):
        block.output.weight.data[:, head * 8 : (head + 1) * 8] = 0
    assert_same(cut, model)
    assert transformer.blocks(cut)[1].query.weight.shape == (8 * max(1, len(keep)), 32)


@pytest.mark.parametrize("keep", [list(range(0, 48, 3)), []])
def test_cutting_neurons_gives_the_logits_of_the_masked_model(model, keep):
    cut = copy.deepcopy(model)
    transformer.cut_ffn(cut, 2, keep)
    gone = sorted(set(range(48)) - set(keep))
    transformer.blocks(model)[2].down.weight.data[:, gone] = 0
    assert_same(cut, model)
    assert transformer.blocks(cut)[2].neurons == max(1, len(keep))


def test_dropping_a_layer_gives_the_logits_of_the_model_that_skips_it(model):
    class Skip(nn.Module):
        def forward(self, hidden, *args, **kwargs):
            return hidden

    cut = copy.deepcopy(model)
    transformer.keep_layers(cut, [2, 0])
    transformer.layers(model)[1] = Skip()
    assert_same(cut, model)
    assert cut.config.num_hidden_layers == 2


def test_a_model_needs_a_layer(model):
    with pytest.raises(UserError, match="at least one layer"):
        transformer.keep_layers(model, [])


def test_keeping_every_hidden_dimension_in_another_order_changes_nothing(model):
    cut = copy.deepcopy(model)
    transformer.cut_hidden(cut, torch.randperm(32, generator=torch.Generator().manual_seed(1)).tolist())
    assert_same(cut, model)


def test_cutting_hidden_dimensions_equals_keeping_them_by_hand_in_a_single_layer_norm(model):
    # what reaches the first attention: the embeddings' columns, normed over those that are left
    keep = list(range(0, 32, 2))
    cut = copy.deepcopy(model)
    transformer.cut_hidden(cut, keep)
    assert transformer.hidden_size(cut) == cut.config.hidden_size == 16
    assert transformer.blocks(cut)[0].query.weight.shape == (32, 16)
    assert torch.equal(transformer.blocks(cut)[0].query.weight, transformer.blocks(model)[0].query.weight[:, keep])
    assert transformer.classifier(cut).out_features == 3
    assert logits(cut).shape == (16, 3)


def test_a_hidden_size_that_the_config_would_misread_is_refused():
    with pytest.raises(UserError, match="A hidden size of 12 cannot be told from that of the embeddings"):
        transformer.cut_hidden(tiny_bert(**FORMS["electra"]), range(12))


def cut_layers(model):
    transformer.keep_layers(model, [0, 2])


def cut_neurons_alike(model):
    for layer in range(3):
        transformer.cut_ffn(model, layer, range(layer, 40 + layer))


def cut_heads_and_hidden(model):
    for layer in range(3):
        transformer.cut_heads(model, layer, [0, 3])
    transformer.cut_hidden(model, range(16))


@pytest.mark.parametrize("cut", [cut_layers, cut_neurons_alike, cut_heads_and_hidden])
def test_from_pretrained_reads_what_the_config_describes(model, cut, tmp_path):
    cut(model)
    storage.save(model, tmp_path, {})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert_same(again, model)
    block = transformer.blocks(model)[0]
    told = again.config
    assert (told.num_attention_heads, told.num_hidden_layers) == (block.heads, len(transformer.layers(model)))
    assert getattr(told, transformer.architecture(model).width) == block.neurons
    assert not hasattr(told, "heads_per_layer")
    assert_same(storage.load(tmp_path), model)


def cut_heads_alone(model):
    for layer in range(3):
        transformer.cut_heads(model, layer, [1, 2, 3])


def cut_heads_unlike(model):
    transformer.cut_heads(model, 1, [2])


def cut_heads_unlike_and_hidden(model):
    transformer.cut_heads(model, 1, [2])
    transformer.cut_hidden(model, range(30))


@pytest.mark.parametrize("cut", [cut_heads_alone, cut_heads_unlike, cut_heads_unlike_and_hidden])
def test_from_pretrained_refuses_what_the_config_cannot_describe_and_storage_loads_it(model, cut, tmp_path):
    cut(model)
    storage.save(model, tmp_path, {})
    assert_same(storage.load(tmp_path), model)
    assert storage.load(tmp_path).config.heads_per_layer == [b.heads for b in transformer.blocks(model)]
    with pytest.raises(RuntimeError):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_neurons_that_differ_by_layer_are_written_to_the_config(model, tmp_path):
    transformer.cut_ffn(model, 1, range(5))
    storage.save(model, tmp_path, {})
    assert storage.load(tmp_path).config.ffn_per_layer == [48, 5, 48]
    assert_same(storage.load(tmp_path), model)


def test_masks_are_cut_with_their_weights(model):
    block = transformer.blocks(model)[0]
    layers.set_mask(block.query, torch.rand(32, 32) < 0.5)
    layers.set_mask(block.output, torch.rand(32, 32) < 0.5)
    transformer.cut_heads(model, 0, [1])
    for layer in (block.query, block.output):
        assert layer.mask.shape == layer.weight.shape
        assert torch.equal(layer.weight != 0, layer.mask)


def test_a_cut_model_trains_on(model):
    transformer.cut_heads(model, 0, [0])
    transformer.cut_ffn(model, 1, [0, 1])
    forward(model, next(words(4, 5).batches(4))[0]).sum().backward()
    assert all(p.grad is not None for b in transformer.blocks(model) for p in (b.query.weight, b.down.weight))


def test_a_model_that_is_no_known_transformer_is_refused_in_one_sentence(task):
    from compression import models

    with pytest.raises(UserError, match="A ConvNet has no attention heads .* bert, roberta"):
        transformer.cut_heads(models.build("digits_cnn", task), 0, [0])


def test_a_transformer_that_was_decomposed_is_refused_in_a_sentence(make_context):
    task, model = words_task(), tiny_bert()
    taken_apart = methods.build("svd", {"rank": "ratio"}).apply(model, make_context(task, tiny_bert()))
    with pytest.raises(UserError, match="prune it first, then decompose it"):
        transformer.blocks(taken_apart)
