"""What is said loudly of a model, whatever step it came from."""

import copy
from pathlib import Path

import pytest
import torch

from compression import methods, models
from compression.deploy.measure import Measurement, layer_table
from compression.nn import transformer
from compression.runs import results
from tests.conftest import stripes_task, tiny_bert, words_task

MLP = {"builder": "mlp", "arguments": {"outputs": 1, "input_shape": [1, 8, 8], "width": 1.0}}


def said(task, model, logits):
    rows = layer_table(model, task.example())
    scores = task.scores(task.test)
    scores.add(logits, logits.argmax(1))  # all of them right
    found = Measurement({"accuracy": 1.0}, {}, rows, Path("file.onnx"), {}, scores)
    return results.sanity_checks(task, model, [found])


@pytest.mark.parametrize("answers", [torch.zeros(5, 1), torch.full((5, 1), torch.nan)])
def test_a_regression_that_says_one_thing_is_told(answers):
    [sentence] = said(stripes_task(outputs=1, metric="pearson"), models.rebuild(MLP), answers)
    assert sentence.startswith("The model answers the same number for everything")
    assert not said(stripes_task(outputs=1, metric="pearson"), models.rebuild(MLP), torch.arange(5.0)[:, None])


def test_an_attention_that_was_cut_out_is_not_over_pruned_and_other_readers_are_told():
    model, logits = tiny_bert(3), torch.eye(3)
    transformer.cut_heads(model, 0, [])
    transformer.cut_ffn(model, 1, [])
    [sentence] = said(words_task(), model, logits)
    assert "from_pretrained cannot read" in sentence
    assert "heads_per_layer and ffn_per_layer" in sentence


def test_a_layer_that_was_masked_whole_is_over_pruned():
    model = tiny_bert(3)
    torch.nn.init.zeros_(transformer.blocks(model)[0].output.weight)
    assert said(words_task(), model, torch.eye(3)) == [
        "Over-pruned: nothing is left in bert.encoder.layer.0.attention.output.dense."
    ]


def test_layers_that_are_no_linear_ones_any_more_are_looked_at_too(make_context):
    model = tiny_bert(3)
    transformer.cut_heads(model, 0, [])
    context = make_context(words_task(), copy.deepcopy(model))
    quantized = methods.method("weight_only")().apply(model, context)
    assert transformer.emptied_layers(quantized) == {"bert.encoder.layer.0.attention.output.dense"}
    assert transformer.emptied_layers(methods.method("svd")().apply(tiny_bert(3), context)) == set()


@pytest.mark.parametrize(
    ("latency", "throughput", "is_slower"),
    [(1.57, 60.0, True), (1.57, 120.0, False), (0.8, 60.0, False), (1.05, 99.0, False)],
)
def test_a_file_that_is_slower_in_both_ways_is_told(latency, throughput, is_slower):
    def timed(latency, throughput):
        figures = {"latency_ms": latency, "throughput": throughput}
        return Measurement({}, figures, [], Path("file.onnx"), {}, None, "ONNX Runtime")

    sentence = results.slowdown(timed(1.0, 100.0), timed(latency, throughput))
    assert sentence.startswith("The ONNX file is slower than the original's: 1.57 times") == is_slower
    assert bool(sentence) == is_slower
