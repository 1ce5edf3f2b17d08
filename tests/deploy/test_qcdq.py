from collections import Counter, OrderedDict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compression.deploy.onnx import qcdq
from compression.errors import UserError
from compression.nn.quantized import QuantConv2d, QuantLinear
from tests.deploy.qparams import input_qparams, weight_qparams

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(bits, activation_bits=8, granularity="channel", symmetric=True):
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 5)

    def qparams(layer):
        return weight_qparams(
            layer.weight, bits, granularity, 4 if granularity == "group" else 0, symmetric, activation_bits
        )

    return nn.Sequential(
        QuantConv2d.from_float(conv, qparams(conv), input_qparams(-3, 3, activation_bits)),
        nn.ReLU(),
        nn.Flatten(),
        QuantLinear.from_float(linear, qparams(linear), input_qparams(0, 2, activation_bits)),
    ).eval()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("granularity", "symmetric"), [("channel", True), ("tensor", False)])
def test_a_file_reads_back_and_gives_equal_outputs(bits, granularity, symmetric, tmp_path):
    model = network(bits, min(bits + 1, 8), granularity, symmetric)
    path = qcdq.write(model, IMAGES, tmp_path / "model.onnx")
    found = list(qcdq.read(path).values())
    assert len(found) == 2
    for layer, weight in zip((model[0], model[3]), found, strict=True):
        assert weight.bits == bits
        codes = weight.codes if weight.codes.shape == layer.codes.shape else weight.codes.T
        assert np.array_equal(codes, layer.codes.numpy())
        values = weight.values if weight.values.shape == layer.weight.shape else weight.values.T
        np.testing.assert_allclose(values, layer.weight.numpy(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(unoptimized_outputs(path), model(IMAGES).detach(), rtol=1e-3, atol=1e-3)


def test_a_clip_has_the_bits_of_its_own_layer_where_one_name_ends_as_another(tmp_path):
    torch.manual_seed(0)
    layers = {}
    for bits in (8, 3):
        linear = nn.Linear(6, 6)
        layers[bits] = QuantLinear.from_float(
            linear, weight_qparams(linear.weight, bits, "channel", 0, True, 8), input_qparams(-3, 3, 8)
        )
    model = nn.Sequential(OrderedDict(fc=layers[3], block=nn.Sequential(OrderedDict(fc=layers[8])))).eval()
    path = qcdq.write(model, IMAGES[:, 0, 0, :6], tmp_path / "model.onnx")
    assert {name.split(".weight")[0]: weight.bits for name, weight in qcdq.read(path).items()} == {
        "model.fc": 3,
        "model.block.fc": 8,
    }


def unoptimized_outputs(path):
    """The outputs without optimizations; an optimized session rounds a bias to steps of the product of two scales."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": IMAGES.numpy()})[0])


def test_the_file_is_made_of_standard_operators_and_clips_say_the_bits(tmp_path):
    path = qcdq.write(network(3, 5), IMAGES, tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    ran = Counter(node.op_type for node in graph.node)
    assert {node.domain for node in graph.node} == {""}
    assert (ran["QuantizeLinear"], ran["Clip"]) == (2, 4)  # two inputs, and two weights besides
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    ends = {(int(held[n.input[1]]), int(held[n.input[2]])) for n in graph.node if n.op_type == "Clip"}
    assert ends == {(-4, 3), (0, 31)}


def test_layers_that_the_format_cannot_hold_are_refused(tmp_path):
    for model in (network(1), network(4, 8, "group")):
        with pytest.raises(UserError, match="QCDQ takes a scale per tensor or channel"):
            qcdq.write(model, IMAGES, tmp_path / "model.onnx")
    alone = nn.Linear(4, 2)
    floats = nn.Sequential(QuantLinear.from_float(alone, weight_qparams(alone.weight, 4)))
    with pytest.raises(UserError, match="0 has no fixed levels for its input"):
        qcdq.write(floats, torch.randn(3, 4), tmp_path / "model.onnx")
