"""A step says which parameters it reached, and warns where they are few."""

import copy

import pytest
import torch
from torch import nn

from compression import methods
from compression.runs.chain import apply_step
from tests.conftest import stripes_task


class Packed(nn.Module):
    """Nearly all parameters are where pruning and quantization do not look."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 2, stride=2)
        self.attention, self.bias = nn.MultiheadAttention(16, 2, batch_first=True), nn.Parameter(torch.ones(1, 1, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.bias
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def applied(recipe, model, make_context):
    task = stripes_task()
    context = make_context(task, model)
    [step] = methods.parse(recipe)
    apply_step(step.resolved(task), copy.deepcopy(model), context.for_step(1, recipe))
    return context.record


@pytest.mark.parametrize("recipe", ["magnitude:sparsity=0.5", "static", "half"])
def test_weights_out_of_reach_are_counted_by_class_and_warned_of(recipe, make_context):
    record = applied(recipe, Packed().eval(), make_context)
    rows = {row["type"]: row for row in record.tables["coverage"]}
    assert rows["MultiheadAttention"]["reached"] == 0
    assert rows["Packed"]["reached"] == 0  # the parameter that it uses itself
    assert rows["Conv2d"]["reached"] == 1
    [(_, share)] = record.history["coverage"]
    total = sum(row["params"] for row in rows.values())
    assert share == pytest.approx(sum(row["params"] * row["reached"] for row in rows.values()) / total)
    [sentence] = [each for each in record.warnings if "of the parameters only" in each]
    assert "MultiheadAttention" in sentence


@pytest.mark.parametrize(
    "recipe",
    [
        "magnitude:sparsity=0.5",
        "static",
        "qat:epochs=0",
        "tucker",
        "structured:sparsity=0.5,round_to=1",
        "cluster:epochs=0",
    ],
)
def test_a_network_of_layers_that_all_know_is_reached_and_nothing_is_said(recipe, make_context):
    stem, body = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
    model = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU(), body, nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    record = applied(recipe, model, make_context)
    [(_, share)] = record.history["coverage"]
    assert share > 0.5
    assert not any("of the parameters only" in sentence for sentence in record.warnings)


def test_training_has_no_coverage(make_context):
    record = applied("finetune:epochs=1", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), make_context)
    assert "coverage" not in record.tables
