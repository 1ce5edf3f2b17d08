import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.methods import method, parse
from compression.methods.quantize.fake_quant.folded import (
    AVERAGING_RATE,
    RangeFakeQuantize,
    fold_and_fake_quantize,
    freeze,
)
from compression.methods.quantize.fake_quant.ste import fake_quantize
from compression.nn import layers
from compression.nn.quantized import QuantAdd, QuantAvgPool2d, QuantEmbedding, QuantLinear
from tests.conftest import tiny_bert, words_task


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def within(low, high, bits=8, follows=True):
    return RangeFakeQuantize(bits, torch.tensor(float(low)), torch.tensor(float(high)), follows)


def test_gradients_pass_within_the_range_only():
    values = torch.tensor([-9.0, -1.0, 0.2, 3.0, 9.0], requires_grad=True)
    rounded = fake_quantize(values, torch.tensor(0.5), torch.tensor(4.0), 0, 15)  # -2 to 5.5
    rounded.sum().backward()
    assert rounded.tolist() == [-2.0, -1.0, 0.0, 3.0, 5.5]
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_range_follows_the_data_until_it_is_frozen():
    source = within(-1, 1).train()
    source(torch.tensor([-3.0, 2.0]))
    assert (source.low.item(), source.high.item()) == pytest.approx((-1 - 2 * AVERAGING_RATE, 1 + AVERAGING_RATE))
    freeze(source, observers=True, norms=False)
    source(torch.tensor([-30.0, 20.0]))
    assert source.high.item() == pytest.approx(1 + AVERAGING_RATE)
    again = within(-1, 1)
    again.load_state_dict(source.state_dict())
    assert again.frozen


def test_a_calibrated_range_stays():
    source = within(-1, 1, follows=False).train()
    source(torch.tensor([-3.0, 2.0]))
    assert (source.low.item(), source.high.item()) == (-1, 1)


def pair(kind):
    """A layer, the norm after it, and inputs."""
    if kind == "conv":
        layer, norm, inputs = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), torch.randn(9, 3, 7, 7)
    else:
        layer, norm, inputs = nn.Linear(12, 6), nn.BatchNorm1d(6), torch.randn(30, 12)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.7, 1.3, 0.0]))
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return layer, norm, inputs


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize(("bits", "activation_bits"), [(2, 2), (3, 8), (4, 4), (8, 8)])
def test_the_deployed_layer_computes_what_training_ended_with(kind, bits, activation_bits):
    layer, norm, inputs = pair(kind)
    source = within(-4, 4, activation_bits)
    fake = fold_and_fake_quantize(layer, norm, method("qat")(bits=bits).current_qparams, source).eval()
    made = fake.convert()
    assert made.bits == bits
    with torch.no_grad():  # a bias is a whole number of steps, small ones even where levels are far apart
        torch.testing.assert_close(made(inputs), fake(inputs), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_in_training_a_norm_is_given_what_it_would_be_without_folding(kind):
    layer, norm, inputs = pair(kind)
    plain, alone = copy.deepcopy(layer), copy.deepcopy(norm).train()
    fake = fold_and_fake_quantize(layer, norm, method("qat")().current_qparams, within(-5, 5)).train()
    expected = alone(plain(inputs))
    alive = expected[:, :5]  # the last channel's factor is zero: its rounded weight means nothing
    assert (fake(inputs)[:, :5] - alive).norm() < 0.03 * alive.norm()
    torch.testing.assert_close(norm.running_var[:5], alone.running_var[:5], rtol=0.03, atol=0.03)
    held = norm.running_var.clone()
    fake.frozen = True
    fake(inputs)
    assert torch.equal(norm.running_var, held)


def kinds(model):
    return {name: type(m).__name__ for name, m in model.named_modules()}


def test_the_converted_model_has_the_layers_of_static(task, make_context):
    model = models.build("resnet8", task)
    context = make_context(task, copy.deepcopy(model))
    trained = method("qat")(epochs=0, bits=5, activation_bits=6).apply(copy.deepcopy(model), context)
    calibrated = method("static")(bits=5, activation_bits=6).apply(copy.deepcopy(model), context)
    assert kinds(trained) == kinds(calibrated)
    assert "QuantAdd" in kinds(trained).values()
    bits = {m.bits for m in trained.modules() if hasattr(m, "codes")}
    assert bits == {5}
    for model in (trained, calibrated):
        assert {m.activation_bits for m in model.modules() if hasattr(m, "codes")} == {6}
        assert {m.bits for m in model.modules() if isinstance(m, (QuantAdd, QuantAvgPool2d))} == {8}


@pytest.mark.parametrize(("observer", "stays"), [("moving_average", False), ("minmax", True), ("mse", True)])
def test_a_range_follows_the_training_or_stays_as_calibrated(observer, stays, task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    step = f"activation_bits=2,observer={observer}"
    [untrained] = parse(f"static:{step},calibration_samples=256")
    [trained] = parse(f"qat:epochs=1,batch_size=128,{step}")
    before, after = (s.apply(copy.deepcopy(model), context).hidden.fc.input.scale for s in (untrained, trained))
    assert (
        bool(torch.isclose(before, after, rtol=1e-5)) == stays
    )  # batch norms are folded in two ways: the last bit differs


def test_observers_and_norms_freeze_at_their_share_of_the_training(task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    states = []

    def remember(module, *_):
        if module.training:
            states.append((module.input_fake_quant.frozen, module.frozen))

    [step] = parse("qat:epochs=1,batch_size=64,freeze_observers=0.5,freeze_norm=1.0")
    insert = type(step).insert_fake_quantization

    def watched(self, model, *rest):
        insert(self, model, *rest)
        model.hidden.fc.register_forward_hook(remember)

    type(step).insert_fake_quantization = watched
    try:
        step.apply(model, context)
    finally:
        type(step).insert_fake_quantization = insert
    assert states == [(False, False), (False, False), (True, False), (True, False)]


def test_pruned_weights_stay_zero_and_skipped_layers_floats(task, make_context):
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    layers.set_mask(model.hidden.fc, torch.rand_like(model.hidden.fc.weight) > 0.5)
    zero = model.hidden.fc.weight == 0
    found = parse("qat:epochs=1,batch_size=128,skip=stages.0")[0].apply(model, context)
    assert (found.hidden.fc.weight[zero] == 0).all()
    assert type(found.stages[0].conv) is nn.Conv2d


@pytest.mark.parametrize("name", ["qat", "lsq"])
def test_a_bert_is_trained_rounded_and_answers_as_its_file(name, make_context, tmp_path):
    task = words_task()
    model = tiny_bert(num_hidden_layers=1)
    context = make_context(task, copy.deepcopy(model))
    made = method(name)(epochs=1).apply(model, context)
    kinds = [type(m) for m in made.modules()]
    assert kinds.count(QuantLinear) == 6 + 2
    assert kinds.count(QuantEmbedding) == (3 if name == "qat" else 0)
    assert {"activation-ranges", "weight-ranges"} <= set(context.record.figures)
    file = export(made, task.example(4), tmp_path / "model.onnx")
    check_parity(made, file, task.test, task, threads=1)


class Twice(nn.Module):
    """One linear layer on two inputs, one of which is 20 times as large."""

    def __init__(self):
        super().__init__()
        self.layer, self.fc = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, images):
        rows = images.flatten(1)
        return self.fc(self.layer(rows / 20) + self.layer(rows))


@pytest.mark.parametrize("fields", [{"epochs": 0}, {"epochs": 2, "learning_rate": 1e-6}])
def test_a_layer_called_twice_has_a_range_for_both_calls(fields, make_context, task):
    model = models.adopt(Twice().eval(), Twice)
    made = method("qat")(**fields).resolved(task).apply(copy.deepcopy(model), make_context(task, model)).eval()
    largest = max(inputs.abs().max().item() for inputs, _ in task.train.batches(500))
    assert made.layer.input.scale.item() * 255 > 0.95 * largest
    example = task.example(50)
    assert (made(example) - model(example)).norm() < 0.1 * model(example).norm()
