import copy
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from compression.deploy.onnx.export import export
from compression.deploy.onnx.tensors import OnnxUnpack
from compression.deploy.session import Session
from compression.deploy.timing import time_files
from compression.nn.layers import Add
from compression.nn.quantized import (
    DYNAMIC,
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    Quantize,
    QuantLinear,
)
from tests.conftest import tiny_bert, words_task
from tests.deploy.graphs import optimized_graph
from tests.deploy.qparams import input_qparams, weight_qparams


class Block(nn.Module):
    """A residual network in small: everything a quantizer has to reach."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.relu, self.add, self.pool = nn.ReLU(), Add(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, images):
        hidden = self.relu(self.first(images))
        hidden = self.relu(self.add(self.second(hidden), hidden))
        return self.fc(self.pool(hidden).flatten(1))


def quantized_block(bits=8, activation_bits=8, granularity="channel", group_size=0, symmetric=True):
    torch.manual_seed(0)
    model = Block().eval()
    signed, positive = input_qparams(-2, 2, activation_bits), input_qparams(0, 2, activation_bits)

    def qparams(layer):
        return weight_qparams(layer.weight, bits, granularity, group_size, symmetric, activation_bits)

    model.first = QuantConv2d.from_float(model.first, qparams(model.first), signed)
    model.second = QuantConv2d.from_float(model.second, qparams(model.second), positive)
    model.fc = QuantLinear.from_float(model.fc, qparams(model.fc), positive)
    model.add, model.pool = QuantAdd.from_qparams(signed, positive), QuantAvgPool2d.from_float(model.pool, positive)
    return model


def operator_counts(path):
    """How often each operator is in the optimized graph of ONNX Runtime."""
    return Counter(node.op_type for node in optimized_graph(path).node)


def run_both(model, inputs, folder):
    """The ONNX file, and the outputs of torch and of ONNX Runtime."""
    path = export(model, inputs, folder / "model.onnx")
    with torch.no_grad():
        ours = model(**inputs).logits if isinstance(inputs, dict) else model(inputs)
    return path, ours, Session(path)(inputs)


IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("bits", "activation_bits", "granularity", "symmetric"),
    [
        (8, 8, "channel", True),
        (8, 8, "tensor", False),
        (3, 4, "tensor", False),
        (3, 5, "channel", True),
        (2, 2, "channel", True),
        (1, 8, "channel", True),
    ],
)
def test_onnx_runtime_runs_every_layer_on_integers(bits, activation_bits, granularity, symmetric, tmp_path):
    model = quantized_block(bits, activation_bits, granularity, symmetric=symmetric)
    path, ours, theirs = run_both(model, IMAGES, tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    ran = operator_counts(path)
    assert (ran["QLinearConv"], ran["QLinearAdd"], ran["QGemm"]) == (2, 1, 1)
    assert ran["QLinearGlobalAveragePool"] == 1
    assert not ran.keys() & {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "Relu", "Unpack", "BitShift"}


def test_groups_of_a_convolution_give_equal_outputs_in_floats(tmp_path):
    path, ours, theirs = run_both(quantized_block(5, 8, "group", 9), IMAGES, tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-2)
    assert not operator_counts(path).keys() & {"Unpack", "BitShift"}  # unpacked when loaded, not at every run


@pytest.mark.parametrize("bits", range(1, 9))
def test_onnx_runtime_unpacks_what_was_packed(bits, tmp_path):
    codes = [torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,)) for count in (3, 7, 8, 41)]
    levels = torch.randn(2**bits)

    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.ModuleList(OnnxUnpack(some, bits, levels) for some in codes)

        def forward(self, inputs):
            return inputs + torch.cat([values() for values in self.values])

    path = export(Looked(), torch.zeros(2, 59), tmp_path / "model.onnx")
    theirs = Session(path)(torch.zeros(1, 59))
    torch.testing.assert_close(theirs[0], levels[torch.cat(codes) + 2 ** (bits - 1)], rtol=0, atol=0)


def test_a_table_is_unpacked_in_little_memory(tmp_path):
    table = nn.Embedding(40_000, 256)
    files = {}
    for name, qparams in {"words": weight_qparams(table.weight, 4, "group", 32), "floats": None}.items():
        made = QuantEmbedding.from_float(table, qparams) if qparams else table
        files[name] = export(made, torch.zeros(2, 3, dtype=torch.int64), tmp_path / f"{name}.onnx")
    packed, floats = time_files(list(files.values()), torch.zeros(2, 3, dtype=torch.int64), 1)
    codes = table.weight.numel() / 1e6
    assert packed.peak_memory_mb - floats.peak_memory_mb < 20 * codes  # 14 bytes a code, once 138


def test_odd_activations_give_equal_outputs(tmp_path):
    model = quantized_block()
    binary = Quantize("odd", 1)
    binary.scale, binary.zero_point = torch.tensor(2.0), torch.tensor(0.5)
    model.second = QuantConv2d(
        16, 16, (3, 3), padding=(1, 1), bits=1, levels="odd", activation="odd", activation_bits=1
    )
    model.second.input = binary
    model.second.set_codes(torch.randint(-1, 1, (16, 16, 3, 3)), torch.full((16, 1), 0.1), torch.zeros(16, 1))
    _, ours, theirs = run_both(model, IMAGES, tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_the_file_takes_the_bits_of_its_weights(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(512, 256, bias=False) for _ in range(8)]
    made = [
        QuantLinear.from_float(layer, weight_qparams(layer.weight, bits, activation_bits=8), input_qparams(-1, 1))
        for bits, layer in enumerate(layers, 1)
    ]

    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(made)

        def forward(self, inputs):
            return torch.stack([layer(inputs) for layer in self.layers]).sum(0)

    path, ours, theirs = run_both(Side(), torch.rand(4, 512), tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    packed = sum(512 * 256 * bits // 8 for bits in range(1, 9))
    levels = sum(2**bits for bits in range(1, 8))
    beside = 8 * (256 * 5 + 700)  # a scale and a zero point for each output
    assert packed < path.stat().st_size < packed + levels + beside
    large = [t for t in onnx.load(path).graph.initializer if np.prod(t.dims) > 10_000]
    assert Counter(t.data_type for t in large) == {TensorProto.UINT8: 7, TensorProto.INT8: 1}
    assert operator_counts(path)["QGemm"] == 8


# --- sums that could saturate -----------------------------------------------------------------------------------


ENDS = torch.tensor([-64, 64]).repeat(8)  # of the codes of a weight, output by output


def linear(ends, activation):
    """A layer all of whose weights are at the end of their codes, in steps of 1."""
    layer = QuantLinear(64, len(ends), bias=False, activation=activation)
    return layer.set_codes(ends.unsqueeze(1).expand(-1, 64), torch.ones(len(ends), 1), torch.zeros(len(ends), 1))


@pytest.mark.parametrize("activation", ["affine", "dynamic"])
def test_the_largest_sums_are_exact_in_onnx_runtime(activation, tmp_path):
    inputs = torch.full((4, 64), 255.0)
    path = export(linear(ENDS, activation), inputs, tmp_path / "model.onnx")
    assert operator_counts(path)["QGemm" if activation == "affine" else "DynamicQuantizeMatMul"] == 1
    assert torch.equal(Session(path)(inputs), (64 * 255 * ENDS).float().expand(4, -1))


def test_the_largest_sums_of_a_convolution_are_exact_in_onnx_runtime(tmp_path):
    layer = QuantConv2d(64, 16, (3, 3), bias=False, activation="affine")
    layer.set_codes(ENDS.view(-1, 1, 1, 1).expand(-1, 64, 3, 3), torch.ones(16, 1), torch.zeros(16, 1))
    sums = (576 * 255 * ENDS).float()
    step = 576 * 255 * 64 / 120
    after = Quantize.from_scheme(input_qparams(-128 * step, 127 * step))
    images = torch.full((2, 64, 5, 5), 255.0)
    path = export(nn.Sequential(layer, after), images, tmp_path / "model.onnx")
    assert operator_counts(path)["QLinearConv"] == 1
    assert torch.equal(Session(path)(images), sums.view(1, -1, 1, 1).expand(2, -1, 3, 3))


def test_full_range_weights_with_full_range_activations_are_refused():
    """What saturates without VNNI (255 * 127 * 2 > 32767), whether or not this CPU has it."""
    pair = np.clip(2 * 255 * 127, -(2**15), 2**15 - 1)
    assert pair != 2 * 255 * 127
    for code in (-65, 65, 127, -128):
        with pytest.raises(ValueError, match="saturate in pairs"):
            linear(torch.full((8,), code), "affine")


# --- text -----------------------------------------------------------------------------------------------------------


def test_the_linear_layers_of_a_bert_run_on_the_expected_kernels(tmp_path):
    torch.manual_seed(0)
    model = tiny_bert(num_hidden_layers=1)
    kinds = {
        "query": (DYNAMIC, 8),
        "key": (input_qparams(-4, 4), 8),
        "value": (None, 4, "group", 16),
        "attention.output.dense": (None, 4, "group", 32, False),
        "intermediate.dense": (DYNAMIC, 4, "tensor"),
        "layer.0.output.dense": (None, 8, "group", 16, False),
        "pooler.dense": (None, 3, "group", 10),
        "classifier": (input_qparams(-4, 4), 6),
        "word_embeddings": (None, 4, "group", 16),
        "position_embeddings": (None, 8),
    }
    for end, (activation, *given) in kinds.items():
        name, layer = next((n, m) for n, m in model.named_modules() if n.endswith(end))
        qparams = weight_qparams(layer.weight, *given, activation_bits=8 if activation else None)
        replaced = QuantEmbedding if isinstance(layer, nn.Embedding) else QuantLinear
        model.set_submodule(name, replaced.from_float(layer, qparams, *([activation] if activation else [])))
    path, ours, theirs = run_both(model.eval(), words_task().example(4), tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    ran = operator_counts(path)
    assert ran["DynamicQuantizeMatMul"] == 2
    assert ran["MatMulIntegerToFloat"] + ran["QGemm"] == 2
    assert ran["MatMulNBits"] == 2
    # Attention, the odd groups of the pooler, and groups of 8 bits.
    assert ran["MatMul"] + ran["FusedMatMul"] + ran["FusedGemm"] == 2 + 1 + 1
    assert not ran.keys() & {"Unpack", "BitShift"}  # unpacked when loaded, not at every run


def test_a_table_with_one_scale_stores_one_scale(tmp_path):
    table = nn.Embedding(5000, 16)
    sizes = {}
    for granularity in ("tensor", "channel"):
        made = QuantEmbedding.from_float(table, weight_qparams(table.weight, 8, granularity))
        path, ours, theirs = run_both(made, torch.randint(0, 5000, (2, 3)), tmp_path)
        torch.testing.assert_close(theirs, ours)
        sizes[granularity] = path.stat().st_size
    assert 5000 * 16 < sizes["tensor"] < 5000 * 16 + 2000
    assert sizes["channel"] - sizes["tensor"] > 4900 * 4


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize(("symmetric", "points"), [(True, 0), (False, 1)])
def test_groups_store_a_scale_and_at_most_a_byte_for_their_zero_point(bits, symmetric, points, tmp_path):
    torch.manual_seed(0)
    table, layer = nn.Embedding(2000, 40), nn.Linear(40, 1000, bias=False)
    given = (bits, "group", 8, symmetric)
    model = nn.Sequential(
        QuantEmbedding.from_float(table, weight_qparams(table.weight, *given)),
        QuantLinear.from_float(layer, weight_qparams(layer.weight, *given)),
    )
    path, ours, theirs = run_both(model, torch.randint(0, 2000, (2, 3)), tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    stored = 0 if bits == 1 else points  # signs have no zero point
    size = 3000 * 40 * bits // 8 + 3000 * 5 * (4 + stored)
    assert size < path.stat().st_size < size + 5000


def test_groups_that_do_not_fill_a_row_are_stored_without_padding(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(70, 64, bias=False)
    made = QuantLinear.from_float(layer, weight_qparams(layer.weight, 8, "group", 64, True))
    path, ours, theirs = run_both(nn.Sequential(made), torch.randn(4, 70), tmp_path)
    torch.testing.assert_close(theirs, ours)
    assert path.stat().st_size < 70 * 64 + 64 * 2 * 4 + 5000  # codes, scales, the graph; filled up it had 128 * 64


def test_exporting_does_not_change_quantized_layers(tmp_path):
    model = quantized_block()
    before = copy.deepcopy(model)
    export(model, IMAGES, tmp_path / "model.onnx")
    assert repr(model) == repr(before)
    assert torch.equal(model(IMAGES), before(IMAGES))


class Shared(nn.Module):
    """One quantized layer under two names, and in two places."""

    def __init__(self, layer):
        super().__init__()
        self.first = self.second = layer
        self.inner = nn.Sequential(layer)

    def forward(self, rows):
        return self.inner(self.second(self.first(rows)))


def test_a_layer_in_several_places_is_written_as_integers_in_all_and_stored_once(tmp_path):
    linear = nn.Linear(64, 64)
    layer = QuantLinear.from_float(
        linear, weight_qparams(linear.weight, 8, "channel", 0, True, 8), input_qparams(-4, 4, 8)
    )
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    model = Shared(layer).eval()
    path = export(model, rows, tmp_path / "model.onnx")
    torch.testing.assert_close(Session(path)(rows), model(rows).detach(), atol=0.05, rtol=0.05)
    stored = [t for t in onnx.load(path).graph.initializer if t.dims == [64, 64]]
    assert [t.data_type for t in stored] == [TensorProto.INT8]
