"""Concatenations of channels run in integers, and so do the convolutions before them."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression import methods, models
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.models import storage
from compression.nn.layers import Concat
from compression.nn.quantized import QuantConcat
from tests.conftest import stripes_task
from tests.deploy.graphs import optimized_graph


class Branches(nn.Module):
    """Concatenated convolutions, as in SqueezeNet and Inception, and a dense block as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.dense, self.norm, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(24), nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        hidden = F.relu(self.stem(images))
        hidden = torch.cat([F.relu(self.left(hidden)), F.relu(self.right(hidden))], 1)
        hidden = torch.cat([hidden, self.dense(hidden)], 1)
        return self.fc(F.relu(self.last(F.relu(self.norm(hidden)))).mean((2, 3)))


@pytest.mark.parametrize("recipe", ["static", "qat:epochs=0", "mixed:widths=8,budget=1", "lsq:epochs=0"])
def test_the_convolutions_before_a_concatenation_are_integer_kernels(recipe, make_context, tmp_path):
    torch.manual_seed(0)
    task, model = stripes_task(), Branches().eval()
    [step] = methods.parse(recipe)
    context = make_context(task, models.adopt(copy.deepcopy(model), Branches, [1, 8, 8]))
    made = step.resolved(task).apply(copy.deepcopy(context.original).requires_grad_(True), context).eval()
    kinds = [type(m) for m in made.modules()]
    assert (kinds.count(QuantConcat), kinds.count(Concat)) == (2, 0)
    again = storage.load(storage.save(made, tmp_path / "stored", {}), like=Branches)
    images = task.example(8)
    assert torch.equal(again(images), made(images))
    file = export(made, images, tmp_path / "model.onnx")
    torch.testing.assert_close(Session(file)(images), made(images), rtol=0.05, atol=0.05)
    ran = Counter(node.op_type for node in optimized_graph(file).node)
    assert (ran["QLinearConv"], ran["Conv"] + ran["FusedConv"]) == (5, 0)
    assert ran["QLinearConcat"] >= 1


class WithAuxiliaryLogits(Branches):
    """As GoogLeNet and Inception: another head, and a tuple, in training alone."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, images):
        logits = super().forward(images)
        return (logits, self.auxiliary(self.stem(images).mean((2, 3)))) if self.training else logits


@pytest.mark.parametrize("recipe", ["static", "mixed:widths=8,budget=1"])
def test_a_network_with_another_output_in_training_is_integers_too(recipe, make_context, tmp_path):
    torch.manual_seed(0)
    task, model = stripes_task(), WithAuxiliaryLogits().eval()
    [step] = methods.parse(recipe)
    context = make_context(task, models.adopt(model, WithAuxiliaryLogits, [1, 8, 8]))
    made = step.resolved(task).apply(copy.deepcopy(model), context).eval()
    assert [type(m) for m in made.modules()].count(QuantConcat) == 2
    again = storage.load(storage.save(made, tmp_path / "stored", {}), like=WithAuxiliaryLogits)
    images = task.example(8)
    assert torch.equal(again(images), made(images))
    torch.testing.assert_close(made(images), model(images), rtol=0.1, atol=0.1)
