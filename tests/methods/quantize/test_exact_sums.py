"""No method writes a file whose integer kernels could saturate on a CPU without VNNI, whatever CPU this one is.

There 16 bits hold a pair of products of an activation (up to 255) and a weight. What counts is the graph as ONNX
Runtime runs it: it quantizes float weights by itself, over the whole byte, between integers on both sides.
"""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compression import methods, models, params
from compression.deploy.onnx.export import export
from compression.nn.quantized import Quantize
from compression.nn.quantized.qparams import MAX_PAIR_SUM
from tests.conftest import tiny_bert, tiny_lstm, words_task
from tests.deploy.graphs import optimized_graph

WEIGHTS = {"DynamicQuantizeLSTM": (1, 2)} | dict.fromkeys(("QLinearConv", "QGemm", "QLinearMatMul"), (3,))
WEIGHTS |= dict.fromkeys(("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (1,))
QUICK = {"epochs": 0, "calibration_samples": 32, "examples": 32}
OPTIONS = [{"granularity": "group"}, {"bits": 8, "activation_bits": 8}]


def cases():
    for name in methods.of_family("quantize"):
        if methods.method(name).requires:  # of text: rounds no inputs
            continue
        fields = params.fields(methods.method(name))
        quick = {n: v for n, v in QUICK.items() if n in fields}
        for options in [o for o in OPTIONS if o.keys() <= fields.keys()] or [{}]:
            yield name, options | quick


def weights(path):
    """The integer weights that kernels multiply with, in the graph as it is run."""
    graph = optimized_graph(path)
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {n.input[i]: held[n.input[i]] for n in graph.node for i in WEIGHTS.get(n.op_type, ())}


def mixed(path):
    """Products in the file of integers made floats and a weight that is none: what ONNX Runtime would quantize."""
    graph = onnx.load(path).graph
    made = {output: node for node in graph.node for output in node.output}
    rounded = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and not dynamic(made.get(n.input[0]))}
    rounded |= {n.output[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in rounded}
    products = [n.input for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    return [(inputs, weight) for inputs, weight, *_ in products if inputs in rounded and weight not in rounded]


def dynamic(node):
    return node is not None and node.op_type == "DynamicQuantizeLinear"


def assert_exact(model, example, folder):
    path = export(model, example, folder / "model.onnx")
    assert not mixed(path)
    highest = [m.input.largest_code for m in model.modules() if isinstance(getattr(m, "input", None), Quantize)]
    found = weights(path)
    for name, codes in found.items():
        assert 2 * np.abs(codes.astype(int)).max() * min(highest) <= MAX_PAIR_SUM, name
    return found


@pytest.mark.parametrize(("name", "fields"), list(cases()))
def test_on_images(name, fields, task, make_context, tmp_path):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task).eval()
    made = methods.method(name)(**fields).apply(copy.deepcopy(model), make_context(task, model))
    assert_exact(made.eval(), task.example(4), tmp_path)


@pytest.mark.parametrize(
    "recipe", ["static:activation_symmetric=true", "mixed", "lsq:epochs=0", "dorefa:epochs=0", "qat:epochs=0"]
)
def test_every_layer_runs_on_integers_where_pooling_comes_before_a_relu(recipe, task, make_context, tmp_path):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task).eval()
    [step] = methods.parse(recipe)
    made = step.apply(copy.deepcopy(model), make_context(task, model)).eval()
    assert len(weights(export(made, task.example(4), tmp_path / "model.onnx"))) == 4


@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_on_text(granularity, make_context, tmp_path):
    torch.manual_seed(0)
    task, model = words_task(), tiny_bert(3).eval()
    step = methods.method("static")(granularity=granularity)
    found = assert_exact(step.apply(copy.deepcopy(model), make_context(task, model)), task.example(4), tmp_path)
    assert bool(found) == (granularity == "channel")


@pytest.mark.parametrize(
    "recipe", ["static:skip=fc", "static:skip=stages.1", "qat:epochs=0,skip=stages.1", "lsq:epochs=0,skip=stages.1"]
)
def test_around_a_layer_that_stays_in_floats(recipe, task, make_context, tmp_path):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task).eval()
    [step] = methods.parse(recipe)
    made = step.apply(copy.deepcopy(model), make_context(task, model)).eval()
    assert len(assert_exact(made, task.example(4), tmp_path)) == 3


def test_on_an_lstm(make_context, tmp_path):
    torch.manual_seed(0)
    task, model = words_task(), tiny_lstm()
    made = methods.method("dynamic")().apply(copy.deepcopy(model), make_context(task, model))
    assert len(assert_exact(made, task.example(4), tmp_path)) == 4  # of inputs and states, both ways; two linear layers
