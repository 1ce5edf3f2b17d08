import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from compression import models
from compression.deploy.measure import layer_table, structure_metrics
from compression.models import storage
from compression.models.storage import describe_layer
from compression.nn import layers
from compression.nn.quantized import DYNAMIC, QuantAdd, QuantConv2d, QuantEmbedding, Quantize, QuantLinear
from compression.nn.quantized.qparams import MAX_PAIR_SUM
from tests.deploy.qparams import input_qparams, weight_qparams


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_a_linear_layer_equals_integer_arithmetic():
    layer = nn.Linear(6, 4)
    qparams, source = weight_qparams(layer.weight, 4, activation_bits=8), input_qparams(-2, 2)
    made = QuantLinear.from_float(layer, qparams, source)
    inputs = torch.randn(5, 6)
    codes = ((inputs / source.scale).round() + source.zero_point).clamp(0, 255) - source.zero_point
    unit = qparams.scale.flatten() / 8  # codes of -8..7 run as -64..56: no pair of products may be larger
    bias = (layer.bias / (unit * source.scale)).round()
    sums = codes.double() @ (8 * made.codes.double()).t() + bias.double()
    expected = sums * unit.double() * source.scale
    torch.testing.assert_close(made(inputs), expected.float())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("activation_bits", range(1, 9))
def test_codes_are_spread_over_bytes_that_add_up_exactly(bits, activation_bits, symmetric):
    layer = nn.Linear(9, 5)
    qparams = weight_qparams(layer.weight, bits, symmetric=symmetric, activation_bits=activation_bits)
    made = QuantLinear.from_float(layer, qparams, input_qparams(-2, 2, activation_bits))
    low, high = qparams.low, qparams.high
    ends = [made.code_step * (2 * code + 1 if bits == 1 else code) for code in (low, high)]
    assert -128 <= min(ends) <= max(ends) <= 127
    assert 2 * max(map(abs, ends)) * made.input.largest_code <= MAX_PAIR_SUM
    step = made.kernel_scale.flatten() * made.input.scale
    assert ((made.bias - layer.bias).abs() <= step / 2 * 1.001).all()
    if bits + activation_bits < 8:
        assert max(map(abs, ends)) > 64


def test_a_convolution_equals_one_of_the_dequantized_inputs_and_weight():
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
    made = QuantConv2d.from_float(layer, weight_qparams(layer.weight, 8, activation_bits=8), input_qparams(0, 3))
    inputs = torch.rand(2, 3, 9, 9) * 4
    rounded = (inputs / made.input.scale).round().clamp(0, 255) * made.input.scale
    expected = F.conv2d(rounded, made.weight, made.bias, stride=2, padding=1)
    torch.testing.assert_close(made(inputs), expected)
    assert (made(inputs) - layer(inputs.clamp(max=3))).abs().max() < 0.05


def test_an_embedding_is_within_half_a_step_of_its_table():
    layer = nn.Embedding(10, 6)
    made = QuantEmbedding.from_float(layer, weight_qparams(layer.weight, 8))
    assert (made(torch.arange(10)) - layer.weight).abs().le(made.scale / 2 * 1.0001).all()


def test_a_dynamic_range_follows_the_formula_of_onnx():
    values = torch.tensor([-1.0, 0.3, 4.1])
    rounded = Quantize.from_scheme(DYNAMIC)(values)
    torch.testing.assert_close(rounded, torch.tensor([-1.0, 0.3, 4.1]))
    assert Quantize("dynamic").calc_qparams(values)[0].item() == pytest.approx(5.1 / 255)
    assert Quantize("dynamic").calc_qparams(values)[1].item() == 50


def test_a_sum_rounds_both_sides():
    add = QuantAdd.from_qparams(input_qparams(0, 255), input_qparams(0, 510))
    assert add(torch.tensor([1.4]), torch.tensor([3.2])).item() == pytest.approx(1 + 4)


def test_codes_given_are_kept():
    layer = nn.Linear(4, 2)
    codes = torch.tensor([[1, -2, 3, 0], [0, 0, -4, 7]])
    made = QuantLinear.from_float(layer, weight_qparams(layer.weight, 4), codes=codes)
    assert torch.equal(made.codes, codes.to(torch.int8))


def test_a_layer_whose_sums_could_saturate_cannot_be_made():
    layer = nn.Linear(4, 2)
    full = weight_qparams(layer.weight, 8, activation_bits=None)  # -128..127
    with pytest.raises(ValueError, match="saturate in pairs"):
        QuantLinear.from_float(layer, full, input_qparams(0, 1))
    with pytest.raises(ValueError, match="saturate in pairs"):
        QuantLinear.from_float(layer, full, DYNAMIC)
    QuantLinear.from_float(layer, full)  # beside floats there are no pairs


def test_a_channel_of_tiny_weights_keeps_its_bias():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0] *= 1e-12
    made = QuantLinear.from_float(layer, weight_qparams(layer.weight, 8, activation_bits=8), input_qparams(-1, 1))
    torch.testing.assert_close(made.bias, layer.bias, rtol=0, atol=1e-4)


@pytest.fixture
def quantized(task):
    """A small network quantized in many schemes."""
    model = models.build("digits_cnn_small", task).eval()
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    kinds = [(2, "tensor", 0, False), (5, "group", 4, True)]
    for name, (bits, granularity, size, symmetric) in zip(convs, kinds, strict=True):
        conv = model.get_submodule(name)
        qparams = weight_qparams(conv.weight, bits, granularity, size, symmetric, activation_bits=6)
        model.set_submodule(name, QuantConv2d.from_float(conv, qparams, input_qparams(-1, 2, bits=6)))
    first, last = (model.get_submodule(name) for name in linears)
    model.set_submodule(linears[0], QuantLinear.from_float(first, weight_qparams(first.weight, 1), None))
    last_qparams = weight_qparams(last.weight, 8, activation_bits=8)
    model.set_submodule(linears[1], QuantLinear.from_float(last, last_qparams, DYNAMIC))
    return model


def test_quantized_layers_reload_with_equal_answers(quantized, task, tmp_path):
    again = storage.load(storage.save(quantized, tmp_path / "model", {}))
    assert torch.equal(again(task.example(6)), quantized(task.example(6)))
    for one, other in zip(quantized.modules(), again.modules(), strict=True):
        if hasattr(one, "codes"):
            assert torch.equal(one.codes, other.codes)
            assert repr(one) == repr(other)
    copy.deepcopy(again)(task.example(2))


def test_the_file_holds_packed_codes_and_no_floats_of_them(quantized, tmp_path):
    storage.save(quantized, tmp_path / "model", {})
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        for name, module in quantized.named_modules():
            if hasattr(module, "codes"):
                packed = file.get_tensor(f"{name}.packed")
                assert packed.numel() == -(-module.weight.numel() * module.bits // 8)
                assert f"{name}.weight" not in file.keys()  # noqa: SIM118 - no dictionary


def test_integer_weights_are_counted_like_floats(task, quantized):
    plain = models.build("digits_cnn_small", task)
    weights = sum(m.weight.numel() for m in layers.prunable_layers(plain).values())
    norms_and_biases = sum(p.numel() for p in plain.parameters()) - weights
    found = structure_metrics(quantized, task.example())
    assert found["params"] == weights + norms_and_biases
    assert found["macs"] == structure_metrics(plain, task.example())["macs"]
    zeros = sum(int((m.weight == 0).sum()) for m in layers.prunable_layers(quantized).values())
    assert found["sparsity"] == pytest.approx(zeros / weights)
    assert zeros > 0
    assert [row["bits"] for row in layer_table(quantized, task.example())] == [2, 5, 1, 8]


def test_quantized_layers_have_no_trainable_parameters(quantized):
    held = [m for m in quantized.modules() if hasattr(m, "codes")]
    assert not any(p.requires_grad for m in held for p in m.parameters())


def test_a_sum_keeps_the_bits_of_either_side_also_when_it_is_rebuilt():
    add = QuantAdd.from_qparams(input_qparams(-1, 1, 8), input_qparams(-1, 1, 3))
    again = QuantAdd(**describe_layer(add)["arguments"])
    again.load_state_dict(add.state_dict())
    left, right = torch.randn(2, 500)
    assert torch.equal(again(left, right), add(left, right))
    assert again(torch.zeros(500), right).unique().numel() <= 8
