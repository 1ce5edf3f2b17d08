import dataclasses

import pytest
import torch
from torch import nn

from compression import methods
from compression.errors import UserError
from compression.nn.inputs import forward
from compression.training.hyperparameters import Training
from compression.training.loop import fit


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def refused(task, make_context, model=None, **fields):
    model = linear() if model is None else model
    with pytest.raises(UserError) as error:
        fit(model, make_context(task, model), Training(**{"epochs": 2, "clip": 0.0} | fields))
    return str(error.value)


def test_a_learning_rate_that_explodes_is_named(task, make_context):
    said = refused(task, make_context, learning_rate=1e5, schedule="constant", weight_decay=0.5)
    assert "learning_rate" in said
    assert "not finite" in said


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_weight_decay_that_makes_weights_grow_is_named(task, make_context, optimizer):
    said = refused(task, make_context, weight_decay=1e6, schedule="constant", optimizer=optimizer, epochs=4)
    assert "learning_rate x weight_decay is 5e+04" in said


def test_a_loss_that_is_not_finite_from_the_start_is_not_blamed_on_the_learning_rate(task, make_context):
    def loss(model, inputs, targets):
        return 1e39 * nn.functional.cross_entropy(forward(model, inputs), targets)

    with pytest.raises(UserError, match="step 1, before any update, so the learning rate is not the cause"):
        fit(linear(), make_context(task, linear()), Training(epochs=1), loss=loss)


def test_the_loss_before_one_that_is_not_finite_is_told(task, make_context):
    values = iter([1.0, 2e30, float("inf"), *[1.0] * 100])

    def loss(model, inputs, targets):
        return forward(model, inputs).sum() * 0 + next(values)

    with pytest.raises(UserError, match=r"step 3 \(learning rate .*, a loss of 2e\+30 before it\)"):
        fit(linear(), make_context(task, linear()), Training(epochs=1), loss=loss)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_weights_that_the_last_update_ruined_are_never_returned(task, make_context, keep):
    # one step: its loss is finite, and no other loss comes after the update
    task = dataclasses.replace(task, train=task.train.select(torch.arange(8)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))
    model.requires_grad_(True)

    def loss(model, inputs, targets):
        return 1e35 * forward(model, inputs).square().sum().clamp(max=1e3)

    with pytest.raises(UserError, match="outputs are not finite after epoch 1 .*learning_rate"):
        fit(model, make_context(task, linear()), Training(epochs=1, learning_rate=1e5, keep=keep), loss=loss)


def test_starting_weights_that_are_not_finite_are_named(task, make_context):
    model = linear()
    model[1].bias.data[1] = float("nan")
    assert "1.bias are not finite before the training" in refused(task, make_context, model)


@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_data_that_are_not_finite_are_named(task, make_context, part):
    values = getattr(task.train, part).float()
    values.view(-1)[5] = float("inf")
    task = dataclasses.replace(task, train=dataclasses.replace(task.train, **{part: values}))
    assert f"{part} of the training data are not all finite" in refused(task, make_context)


WITH_TEMPERATURE = ["response", "decoupled", "self_distill", "multi_teacher", "mutual", "l0", "movement", "grasp"]


@pytest.mark.parametrize("temperature", ["1e30", "1e-30", "inf", "nan"])
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_temperature_that_no_loss_survives_is_named(name, temperature):
    with pytest.raises(UserError, match="temperature=.* is out of range"):
        methods.build(name, {"temperature": temperature})


@pytest.mark.parametrize("temperature", [0.01, 1000.0])
@pytest.mark.parametrize("name", ["response", "decoupled", "mutual"])
def test_the_ends_of_the_range_of_temperatures_train(task, make_context, name, temperature):
    task = dataclasses.replace(task, train=task.train.select(torch.arange(64)))
    step = methods.build(name, {"temperature": str(temperature), "epochs": "1", "learning_rate": "1e-6"})
    context = make_context(task, linear())
    step.apply(linear(), context)
    assert len(context.record.history["train_loss"]) == 1


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay"])
def test_a_rate_beyond_float32_is_out_of_range(field):
    with pytest.raises(UserError, match=f"{field}=1e\\+39 is out of range"):
        methods.build("finetune", {field: "1e39"})


def test_a_loss_that_is_huge_from_the_start_is_not_blamed_on_the_learning_rate(task, make_context):
    def loss(model, inputs, targets):
        return 1e37 * nn.functional.cross_entropy(forward(model, inputs), targets)

    said = r"step 2, and it was 1\.\d+e\+37 before any update, so the learning rate is not the cause: a temperature"
    with pytest.raises(UserError, match=said):
        fit(linear(), make_context(task, linear()), Training(epochs=1), loss=loss)
