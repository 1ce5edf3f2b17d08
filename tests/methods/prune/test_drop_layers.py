import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from compression.methods import method
from compression.methods.prune.drop_layers import ORDERS, block_influence, layers_to_drop
from compression.models import storage
from compression.nn import transformer
from compression.tasks.task import predict
from tests.conftest import tiny_bert, words_task

DropLayers = method("drop_layers")


@pytest.mark.parametrize(
    ("order", "count", "dropped"),
    [
        ("every_other", 3, [1, 3, 5]),
        ("every_other", 2, [2, 5]),
        ("every_other", 0, []),
        ("first", 2, [0, 1]),
        ("last", 2, [4, 5]),
        ("last", 0, []),
        ("importance", 2, [3, 1]),
    ],
)
def test_the_layers_that_go(order, count, dropped):
    assert layers_to_drop(order, count, torch.tensor([0.9, 0.2, 0.8, 0.1, 0.5, 0.6])) == dropped


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_left_reads_with_from_pretrained(make_context, tmp_path, order):
    task, model = words_task(), tiny_bert(num_hidden_layers=4)
    context = make_context(task, copy.deepcopy(model))
    small = DropLayers(order=order, examples=32).apply(model, context).eval()
    assert small.config.num_hidden_layers == len(transformer.layers(small)) == 2
    storage.save(small, tmp_path, {})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])
    assert "dropped-layers" in context.record.figures
    assert not context.record.warnings


def test_a_layer_that_changes_nothing_has_no_influence_and_goes_first(make_context):
    task, model = words_task(), tiny_bert(num_hidden_layers=4)
    idle = transformer.blocks(model)[2]
    for linear in (idle.output, idle.down):  # what is added to the hidden states, which are normed already
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    context = make_context(task, model)
    influence = block_influence(model, 32, context)
    assert influence[2].item() == pytest.approx(0.0, abs=1e-5)
    assert influence.argmin() == 2
    kept = [transformer.layers(model)[i] for i in (0, 1, 3)]
    small = DropLayers(sparsity=0.25, order="importance", examples=32).apply(model, context)
    assert list(transformer.layers(small)) == kept
    assert not any(layer._forward_hooks for layer in kept)


def test_influence_is_one_minus_the_cosine_of_input_and_output(make_context):
    task, model = words_task(), tiny_bert(num_hidden_layers=1, initializer_range=0.5)
    inputs, _ = next(task.train.batches(len(task.train)))
    mask = inputs["attention_mask"].bool()
    states = model(**inputs, output_hidden_states=True).hidden_states
    expected = 1 - torch.cosine_similarity(states[0][mask], states[1][mask], dim=-1).mean()
    found = block_influence(model, len(task.train), make_context(task, model))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_layer_always_stays_and_a_share_between_layers_is_said(make_context):
    task, model = words_task(), tiny_bert(num_hidden_layers=2)
    context = make_context(task, model)
    small = DropLayers(sparsity=0.9).apply(model, context)
    assert len(transformer.layers(small)) == 1
    assert "1 of 2 layers are dropped" in context.record.warnings[0]
