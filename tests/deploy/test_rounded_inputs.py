"""Weights of 4 bits in groups run on the kernel that rounds its inputs, where the file then answers as the model."""

import onnx
import pytest
import torch
from torch import nn

from compression.deploy.measure import measure_model
from compression.deploy.onnx.export import export
from compression.nn.quantized import QuantLinear
from tests.conftest import stripes_task
from tests.deploy.qparams import weight_qparams


class Network(nn.Module):
    """A layer of 4-bit weights in groups of 16; the first of each group of inputs is `first` and has the weight 0."""

    def __init__(self, first):
        super().__init__()
        torch.manual_seed(0)
        linear = nn.Linear(64, 3)
        with torch.no_grad():
            linear.weight[:, ::16] = 0
        self.fc = QuantLinear.from_float(linear, weight_qparams(linear.weight, 4, "group", 16))
        self.register_buffer("first", torch.zeros(64).index_fill(0, torch.arange(0, 64, 16), first))

    def forward(self, images):
        return self.fc(images.flatten(1) + self.first)


def levels(path):
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    return [[a.i for a in node.attribute if a.name == "accuracy_level"] for node in nodes]


# Beside inputs of 1,000, those of about 1 are all rounded to 0.
@pytest.mark.parametrize(("first", "expected"), [(1.0, [[4]]), (1000.0, [[]])])
def test_inputs_are_rounded_unless_the_answers_change(first, expected, tmp_path):
    task, model = stripes_task(), Network(first).eval()
    found = measure_model(model, task, tmp_path / "model.onnx", 1)
    assert levels(found.file) == expected
    assert found.onnx["onnx_agreement_within_noise"] >= 0.99


def test_nothing_is_rounded_where_nobody_compares(tmp_path):
    assert levels(export(Network(1.0).eval(), stripes_task().example(4), tmp_path / "model.onnx")) == [[]]
