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
from tests.deploy.graphs import optimized_graph
from tests.deploy.qparams import weight_qparams

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


def replace_gates(model, made):
    model = copy.deepcopy(model)
    for name, layer in list(model.lstm.named_modules()):
        if isinstance(layer, Gates):
            model.lstm.set_submodule(name, made(layer))
    return model


def operator_counts(path):
    return Counter(node.op_type for node in optimized_graph(path).node)


def assert_equal_outputs(model, path):
    session = Session(path)
    for texts in (TEXTS, LONGER):
        with torch.no_grad():
            torch.testing.assert_close(session(texts), model(**texts), atol=1e-5, rtol=1e-4)


def half(layer):
    return HalfLinear.shaped_like(layer).set_weight(layer.weight, layer.bias)


def clustered(layer):
    made = ClusteredLinear.shaped_like(layer, bits=3)
    indices = torch.randint(8, layer.weight.shape, generator=torch.Generator().manual_seed(3))
    return made.set_indices(indices, torch.linspace(-0.3, 0.3, 8), layer.bias)


def in_groups(layer):
    return QuantLinear.from_float(layer, weight_qparams(layer.weight, 4, "group", 8))


@pytest.mark.parametrize("made", [lambda layer: layer, half, clustered, in_groups])
def test_weights_that_are_multiplied_as_floats_become_the_lstm_operator(made, model, tmp_path):
    model = replace_gates(model, made)
    path = export(model, TEXTS, tmp_path / "model.onnx")
    assert operator_counts(path)["LSTM"] == 1
    assert_equal_outputs(model, path)


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
        qparams = weight_qparams(layer.weight, bits, granularity, symmetric=symmetric, activation_bits=8)
        return QuantLinear.from_float(layer, qparams, DYNAMIC)

    model = replace_gates(model, made)
    path = export(model, TEXTS, tmp_path / "model.onnx")
    assert operator_counts(path)["DynamicQuantizeLSTM"] == 1
    assert_equal_outputs(model, path)
