import copy
from collections import Counter

import onnx
import pytest
import torch

from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.nn.quantized import DYNAMIC, QuantLinear
from compression.nn.quantized.clustered import ClusteredLinear
from compression.nn.quantized.half import HalfLinear
from compression.nn.recurrent import Gates
from tests.conftest import tiny_lstm
from tests.deploy.chosen import weight_numbers
from tests.deploy.graphs import as_run

IDS = torch.randint(1, 24, (4, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 6:] = MASK[2, 1:] = 0
TEXTS = {"input_ids": IDS * MASK, "attention_mask": MASK}
LONGER = {name: torch.cat([t, t.flip(1)], 1)[:3] for name, t in TEXTS.items()} | {
    "attention_mask": torch.ones(3, 16).long()
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_lstm()


def changed(model, made):
    model = copy.deepcopy(model)
    for name, layer in list(model.lstm.named_modules()):
        if isinstance(layer, Gates):
            model.lstm.set_submodule(name, made(layer))
    return model


def kinds(path):
    return Counter(node.op_type for node in as_run(path).node)


def assert_equal_answers(model, path):
    session = Session(path)
    for texts in (TEXTS, LONGER):
        with torch.no_grad():
            torch.testing.assert_close(session(texts), model(**texts), atol=1e-5, rtol=1e-4)


def half(layer):
    made = HalfLinear(layer.in_features, layer.out_features, layer.bias is not None)
    return made.set_weight(layer.weight, layer.bias)


def clustered(layer):
    made = ClusteredLinear(layer.in_features, layer.out_features, layer.bias is not None, bits=3)
    indices = torch.randint(8, layer.weight.shape, generator=torch.Generator().manual_seed(3))
    return made.set_indices(indices, torch.linspace(-0.3, 0.3, 8), layer.bias)


def in_groups(layer):
    return QuantLinear.from_float(layer, weight_numbers(layer.weight, 4, "group", 8))


@pytest.mark.parametrize("made", [lambda layer: layer, half, clustered, in_groups])
def test_weights_that_are_floats_in_the_end_become_the_operator_of_onnx(made, model, tmp_path):
    model = changed(model, made)
    path = export(model, TEXTS, tmp_path / "model.onnx")
    assert kinds(path)["LSTM"] == 1
    assert_equal_answers(model, path)


def test_weights_in_floats_are_plain_initializers_that_other_tools_find(model, tmp_path):
    graph = onnx.load(export(model, TEXTS, tmp_path / "model.onnx")).graph
    [node] = [node for node in graph.node if node.op_type == "LSTM"]
    assert {t.name for t in graph.initializer} >= set(node.input[1:4])


@pytest.mark.parametrize(
    ("bits", "granularity", "symmetric"),
    [(8, "channel", True), (8, "tensor", False), (3, "channel", True), (1, "channel", True)],
)
def test_dynamic_integers_become_the_kernel_of_onnx_runtime(bits, granularity, symmetric, model, tmp_path):
    def made(layer):
        numbers = weight_numbers(layer.weight, bits, granularity, symmetric=symmetric, activation_bits=8)
        return QuantLinear.from_float(layer, numbers, DYNAMIC)

    model = changed(model, made)
    path = export(model, TEXTS, tmp_path / "model.onnx")
    assert kinds(path)["DynamicQuantizeLSTM"] == 1
    assert_equal_answers(model, path)
