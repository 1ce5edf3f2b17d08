"""The exporter is asked once for each structure; a known graph with other weights is the file that it would write."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from compression import models
from compression.deploy.onnx import translation
from compression.deploy.onnx.export import export
from compression.deploy.onnx.structure import UnknownStructureError, structure
from compression.deploy.session import Session
from compression.methods import method
from tests.conftest import stripes_task, tiny_bert

IDS = torch.arange(12).reshape(2, 6)
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A convolution, a norm, and two linear layers, with an attribute, a constant and a function."""

    def __init__(self, slope=0.1, shared=False, activation=torch.tanh):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        if shared:
            self.second.weight = self.first.weight
        self.slope, self.activation, self.offset = slope, activation, torch.arange(4.0)

    def forward(self, images):
        hidden = nn.functional.leaky_relu(self.norm(self.conv(images)), self.slope).mean((2, 3))
        return self.second(self.activation(self.first(hidden)) + self.offset)


@pytest.fixture
def asked(monkeypatch):
    """How often the exporter was asked, from an empty memory on."""
    calls, real = [], translation._export
    monkeypatch.setattr(translation, "_GRAPHS", OrderedDict())
    monkeypatch.setattr(translation, "_export", lambda *given: calls.append(given) or real(*given))
    return calls


def randomized(model):
    """The model with other weights and statistics."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def requires_answers(model, example, file):
    """Require that the file answers as the model does."""
    expected = model(**example).logits if isinstance(example, dict) else model(example)
    torch.testing.assert_close(Session(file)(example), expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("make", "example"), [(Small, IMAGES), (tiny_bert, TEXT)], ids=["images", "text"])
def test_other_weights_make_the_file_that_the_exporter_writes(make, example, asked, tmp_path):
    export(randomized(make()), example, tmp_path / "first.onnx")
    second = randomized(make())
    known = export(second, example, tmp_path / "known.onnx")
    assert len(asked) == 1
    requires_answers(second, example, known)
    translation._GRAPHS.clear()
    fresh = export(second, example, tmp_path / "fresh.onnx")
    assert len(asked) == 2
    assert known.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("step", ["static", "dynamic", "weight_only", "half", "cluster"])
def test_quantized_layers_are_known_too(step, asked, tmp_path, make_context):
    task, made = stripes_task(), []
    for name in ("first", "second"):
        original = randomized(models.build("digits_cnn", task))
        model = method(step)().resolved(task).apply(copy.deepcopy(original), make_context(task, original)).eval()
        made.append(export(model, task.example(2), tmp_path / f"{name}.onnx"))
    assert len(asked) == 1
    translation._GRAPHS.clear()
    assert export(model, task.example(2), tmp_path / "fresh.onnx").read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        lambda: Small(slope=0.2),
        lambda: Small(shared=True),
        lambda: Small(activation=torch.sigmoid),
        lambda: Small(activation=lambda values: values * 2),
        lambda: with_offset(Small(), torch.arange(4.0) + 1),
        lambda: without_bias(Small()),
        lambda: Small().double().float().to(memory_format=torch.channels_last),
    ],
    ids=["attribute", "shared tensor", "function", "lambda", "constant", "no bias", "strides"],
)
def test_another_structure_is_exported_anew(other, asked, tmp_path):
    export(randomized(Small()), IMAGES, tmp_path / "first.onnx")
    model = randomized(other())
    requires_answers(model, IMAGES, export(model, IMAGES, tmp_path / "other.onnx"))
    assert len(asked) == 2


def with_offset(model, offset):
    model.offset = offset
    return model


def without_bias(model):
    model.first.bias = None
    return model


def test_a_value_that_a_function_encloses_is_part_of_the_structure():
    def make(factor):
        return Small(activation=lambda values: values * factor)

    assert structure(make(2.0)) == structure(make(2.0))
    assert structure(make(2.0)) != structure(make(3.0))


def test_a_model_with_hooks_or_strange_attributes_is_exported_each_time(asked, tmp_path):
    hooked, strange = Small(), Small()
    hooked.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    strange.something = iter([1])
    for model in (hooked, strange):
        with pytest.raises(UnknownStructureError):
            structure(model)
        randomized(model)
        for name in ("first", "second"):
            requires_answers(model, IMAGES, export(model, IMAGES, tmp_path / f"{name}.onnx"))
    assert len(asked) == 4


def test_graphs_are_kept_without_weights_and_not_for_ever(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(translation, "MOST_GRAPHS", 2)
    for slope in (0.1, 0.2, 0.3):
        export(randomized(Small(slope)), IMAGES, tmp_path / "a.onnx")
    assert len(translation._GRAPHS) == 2
    for graph in translation._GRAPHS.values():
        kept = [value.const_value for value in graph.graph.initializers.values() if value.const_value is not None]
        assert sum(tensor.nbytes for tensor in kept) < 100
