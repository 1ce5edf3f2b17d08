"""Fake-quantization training: the gradients against the formulas of the papers, and the conversion of layers."""

import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.errors import UserError
from compression.methods import build, method, parse
from compression.methods.quantize.bnn import ScaledSignWeight, SignInput, next_layers, scaled_sign
from compression.methods.quantize.dorefa import MeanSignWeight, TanhWeight, UnitInput, mean_sign, quantize_unit
from compression.methods.quantize.fake_quant.layers import convert, fake_quantized, is_foldable
from compression.methods.quantize.fake_quant.learned_step import (
    LearnedStepInput,
    LearnedStepWeight,
    initial_step,
    learned_steps,
    quantize_with_step,
)
from compression.methods.quantize.fake_quant.ste import sign_ste
from compression.methods.quantize.graph.folding import foldable_norms
from compression.nn.graph import record_graph
from compression.nn.quantized import QParams, QuantConv2d, QuantLinear
from compression.tasks.task import predict


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def gradient(function, values, outer):
    """d(sum of outer * function(values)) / d values."""
    values = values.clone().requires_grad_(True)
    (found,) = torch.autograd.grad((function(values) * outer).sum(), values)
    return found


VALUES, OUTER = torch.randn(6, 5), torch.randn(6, 5)


# --- LSQ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-4, 3), (0, 7)])
def test_the_gradients_of_lsq_are_equations_3_and_5(low, high):
    step, scale = torch.tensor(0.3), 0.25
    ratio = VALUES / step
    inside = (ratio > low) & (ratio < high)
    by_step = torch.where(inside, ratio.round() - ratio, torch.where(ratio <= low, float(low), float(high)))
    found = gradient(lambda s: quantize_with_step(VALUES, s, low, high, scale), step, OUTER)
    torch.testing.assert_close(found, (by_step * OUTER).sum() * scale)
    by_value = gradient(lambda v: quantize_with_step(v, step, low, high, scale), VALUES, OUTER)
    torch.testing.assert_close(by_value, OUTER * inside)


def test_lsq_rounds_to_multiples_of_its_step():
    found = quantize_with_step(torch.tensor([-2.0, -0.3, 0.26, 5.0]), torch.tensor(0.5), -4, 3, 1.0)
    assert found.tolist() == [-2.0, -0.5, 0.5, 1.5]


def test_the_first_step_has_the_least_squared_error():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    step = initial_step(values, -8, 7)

    def error(step):
        return ((values / step).round().clamp(-8, 7) * step - values).square().mean()

    assert error(step) <= min(error(step * factor) for factor in (0.5, 0.8, 0.9, 1.1, 1.25, 2.0))
    assert initial_step(torch.tensor([0.5, -1.0, 1.5]), -4, 3).item() == pytest.approx(0.5)
    assert initial_step(torch.zeros(3), -4, 3).item() > 0


def test_a_learned_step_input_is_signed_if_some_values_are_negative():
    positive, signed = LearnedStepInput(3), LearnedStepInput(3)
    positive.initialize(torch.rand(4, 3))
    signed.initialize(torch.randn(4, 3))
    assert (positive.low, positive.high) == (0, 7)
    assert (signed.low, signed.high) == (-4, 3)
    assert (positive.qparams().zero_point, signed.qparams().zero_point) == (0, 4)


# --- DoReFa ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_the_gradient_of_dorefas_weights_is_that_of_its_formula_with_rounding_left_out(bits):
    smooth = gradient(lambda w: w.tanh() / w.tanh().abs().max(), VALUES, OUTER)
    torch.testing.assert_close(gradient(TanhWeight(bits), VALUES, OUTER), smooth)


def test_dorefas_weights_are_equation_9():
    steps = 2**3 - 1
    unit = VALUES.tanh() / (2 * VALUES.tanh().abs().max()) + 0.5
    torch.testing.assert_close(TanhWeight(3)(VALUES), 2 * (unit * steps).round() / steps - 1)


def test_dorefas_single_bit_is_the_mean_magnitude_and_passes_gradients():
    torch.testing.assert_close(mean_sign(VALUES), VALUES.sign() * VALUES.abs().mean())
    torch.testing.assert_close(gradient(mean_sign, VALUES, OUTER), OUTER)


def test_dorefas_inputs_are_clipped_and_pass_gradients_where_they_are_not():
    assert UnitInput(2)(torch.tensor([-1.0, 0.2, 0.6, 3.0])).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    found = gradient(UnitInput(2), VALUES, OUTER)
    torch.testing.assert_close(found, OUTER * ((VALUES >= 0) & (VALUES <= 1)))
    torch.testing.assert_close(gradient(lambda x: quantize_unit(x, 2), VALUES, OUTER), OUTER)


def test_dorefas_widths_that_could_overflow_are_refused():
    with pytest.raises(UserError, match="bits=7 with activation_bits=8 could overflow"):
        method("dorefa")(bits=7, activation_bits=8)
    method("dorefa")(bits=7, activation_bits=7)
    method("dorefa")(bits=8, activation_bits=8)


# --- binary ---------------------------------------------------------------------------------------------------------


def test_the_sign_passes_gradients_where_the_input_is_within_one():
    assert sign_ste(torch.tensor([-0.1, 0.0, 2.0])).tolist() == [-1, 1, 1]
    torch.testing.assert_close(gradient(sign_ste, 2 * VALUES, OUTER), OUTER * (2 * VALUES.abs() <= 1))


def test_the_gradient_of_a_scaled_sign_is_that_of_xnor_net():
    scale = VALUES.abs().mean(1, keepdim=True)
    expected = OUTER * (1 / 5 + scale * (VALUES.abs() <= 1))
    torch.testing.assert_close(gradient(scaled_sign, VALUES, OUTER), expected)
    torch.testing.assert_close(scaled_sign(VALUES), VALUES.sign() * scale)


def test_relus_before_binary_inputs_go_and_the_last_stays(task, make_context):
    model = models.build("digits_cnn", task)
    found = method("bnn")(epochs=0).apply(model, make_context(task, copy.deepcopy(model)))
    assert [name for name, m in found.named_modules() if isinstance(m, nn.ReLU)] == ["hidden.relu"]
    assert set(found.stages[1].conv.codes.unique().tolist()) == {-1, 0}
    assert (found.stages[0].conv.bits, found.stages[1].conv.bits, found.hidden.fc.bits, found.fc.bits) == (8, 1, 1, 8)


def test_weights_of_a_binary_layer_stay_within_one(task, make_context):
    model = models.build("digits_cnn", task)
    binary = method("bnn")()
    context = make_context(task, copy.deepcopy(model))
    binary.insert_fake_quantization(model, record_graph(model, task.example(8)), task.example(8))
    with torch.no_grad():
        model.stages[1].conv.weight.fill_(3.0)
    binary.after_step(model)
    assert model.stages[1].conv.weight.max() == 1
    assert context.original.stages[1].conv.weight.max() < 1


# --- from training to integers --------------------------------------------------------------------------------------


def fake_quantizers(kind, layer):
    if kind == "lsq":
        weight, of_input = learned_steps(layer, 3, 4)
        of_input.initialize(torch.randn(64, 3))
        return weight, of_input
    if kind == "bnn":
        return ScaledSignWeight(), SignInput()
    return (TanhWeight(3) if kind == "dorefa" else MeanSignWeight()), UnitInput(4)


@pytest.mark.parametrize("kind", ["lsq", "dorefa", "one bit", "bnn"])
@pytest.mark.parametrize("layer", [nn.Linear(12, 5), nn.Conv2d(3, 5, 3, padding=1, stride=2)], ids=["linear", "conv"])
def test_the_deployed_layer_computes_what_the_training_layer_did(kind, layer):
    inputs = torch.randn(7, 12) if isinstance(layer, nn.Linear) else torch.randn(7, 3, 6, 6)
    training = fake_quantized(copy.deepcopy(layer), *fake_quantizers(kind, layer))
    expected = training(inputs)
    made = convert(training)
    assert isinstance(made, QuantLinear if isinstance(layer, nn.Linear) else QuantConv2d)
    assert_equal_but_for_the_bias(made, made(inputs), expected)


def assert_equal_but_for_the_bias(made, found, expected):
    """Beside integer inputs a bias is a whole number of steps."""
    step = made.bias_scale
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 + (0 if step is None else step.max().item() / 2))


def with_norm(kind, signs):
    """A convolution to train and the batch norm after it, whose gains have these signs."""
    layer = nn.Conv2d(3, 4, 3)
    norm = nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(signs) * (torch.rand(4) + 0.5))
        for tensor in (norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return fake_quantized(layer, *fake_quantizers(kind, layer)), norm


@pytest.mark.parametrize("kind", ["lsq", "dorefa", "one bit", "bnn"])
def test_a_batch_norm_folds_into_the_scales_and_no_code_changes(kind):
    training, norm = with_norm(kind, [1.0, -1.0, 1.0, -1.0])
    inputs = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        if kind == "lsq":  # no weight at the lowest code, which has no negative
            training.weight.clamp_(min=-2.4 * training.weight_fake_quant.step)
        expected = norm(training(inputs))
        assert is_foldable(training, norm)
        made = convert(training, norm)
        assert_equal_but_for_the_bias(made, made(inputs), expected)
    assert made.bits == training.weight_fake_quant.qparams(training.weight).bits
    assert len(made.scale) == 4


def test_a_batch_norm_stays_where_a_code_would_have_no_negative_or_a_factor_is_zero():
    training, norm = with_norm("lsq", [1.0, -1.0, 1.0, 1.0])
    with torch.no_grad():
        training.weight[1, 0, 0, 0] = -10.0
        assert not is_foldable(training, norm)
        norm.weight.abs_()
        assert is_foldable(training, norm)
        norm.weight[2] = 0.0
        assert not is_foldable(training, norm)


def test_a_converted_model_has_the_outputs_that_it_had_in_training(task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    method("finetune")(epochs=1).apply(model, context)
    step = method("lsq")(epochs=1, bits=3)
    trained_model = {}

    def remember(trained):
        trained_model["model"] = copy.deepcopy(trained).eval()

    object.__setattr__(step, "after_step", remember)
    found = step.apply(model, context)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in found.modules())
    ours, theirs = predict(found, task.test)[0], predict(trained_model["model"], task.test)[0]
    assert (ours - theirs).norm() < 0.02 * theirs.norm()  # biases are whole numbers of steps now


def test_pruned_weights_stay_zero(task, make_context):
    from compression.nn import layers

    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    for layer in layers.prunable_layers(model).values():
        layers.set_mask(layer, torch.rand_like(layer.weight) > 0.5)
    gone = {name: layer.weight == 0 for name, layer in layers.prunable_layers(model).items()}
    found = method("lsq")(epochs=1).apply(model, context)
    assert all((found.get_submodule(name).weight[zero] == 0).all() for name, zero in gone.items())


def test_layers_are_skipped_by_name_and_edges_left_in_floats(task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    [step] = parse("lsq:epochs=0,edge_bits=0,skip=stages.1")
    found = step.apply(copy.deepcopy(model), context)
    kinds = {name: type(found.get_submodule(name)).__name__ for name in ("stages.0.conv", "stages.1.conv", "fc")}
    assert kinds == {"stages.0.conv": "Conv2d", "stages.1.conv": "Conv2d", "fc": "Sequential"}
    assert found.hidden.fc.bits == 4
    with pytest.raises(UserError, match="skip names 'conv9', which is no layer of the model"):
        parse("lsq:skip=conv9")[0].apply(copy.deepcopy(model), context)
    with pytest.raises(UserError, match="edge_bits=1 is too few"):
        parse("lsq:edge_bits=1")


def test_the_order_of_a_model_is_that_in_which_it_runs(task):
    graph = record_graph(models.build("resnet8", task), task.example(2))
    layers = [node.name for node in graph.nodes if isinstance(node.target, (nn.Conv2d, nn.Linear))]
    assert (layers[0], layers[-1]) == ("stem.conv", "fc")
    [relu] = graph.calls("stem.relu")
    assert next_layers(graph, relu) == {"stages.0.0.conv1"}  # and a residual sum
    assert foldable_norms(graph)["stages.1.0.shortcut.conv"] == "stages.1.0.shortcut.bn"


def test_a_learned_weight_of_eight_bits_uses_codes_that_add_up_exactly():
    assert (LearnedStepWeight(VALUES, 8, 8).low, LearnedStepWeight(VALUES, 8, 8).high) == (-64, 64)


@pytest.mark.parametrize("name", ["lsq", "dorefa"])
def test_sums_and_means_are_in_integers_so_that_no_layer_is_left_in_floats(name, task, make_context):
    model = models.build("resnet8", task)
    found = build(name, {"epochs": "0"}).apply(copy.deepcopy(model), make_context(task, model))
    kinds = [type(m).__name__ for m in found.modules()]
    assert kinds.count("QuantAdd") == 3
    assert kinds.count("QuantAvgPool2d") == 1
    assert "Add" not in kinds


def test_the_sign_of_a_zero_with_rounding_noise_is_the_same_in_torch_and_onnx(tmp_path):
    # the first layer's outputs are multiples of a step, many of them zero; the second takes their signs
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 8, 3, bias=False), nn.Conv2d(8, 4, 3, bias=False)
    steps = QParams(8, torch.full((1, 1), 0.013), torch.zeros(1, 1), -64, 64)
    first.weight.data = torch.randint(-2, 3, first.weight.shape) * 0.013
    pixels = QParams(8, torch.tensor(0.017), torch.tensor(128.0), 0, 255)
    signs = ScaledSignWeight().qparams(second.weight), SignInput().qparams()
    made = [QuantConv2d.from_float(first, steps, pixels), QuantConv2d.from_float(second, *signs)]
    model = nn.Sequential(*made).eval()
    images = torch.randint(-3, 4, (64, 2, 12, 12)) * 0.017
    assert (model[0](images).abs() < 1e-6).float().mean() > 0.02
    path = export(model, images[:4], tmp_path / "signs.onnx")
    torch.testing.assert_close(Session(path)(images), model(images).detach(), rtol=1e-4, atol=1e-4)
