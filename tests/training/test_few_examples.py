"""Trainings on batches of one example, and on next to no data."""

import dataclasses

import pytest
import torch
from torch import nn

from compression import methods, models
from compression.errors import UserError
from compression.nn.inputs import forward
from compression.training.hyperparameters import Training
from compression.training.loop import batch_sizes, fit


def first(task, count):
    return dataclasses.replace(task, train=task.train.select(torch.arange(count)))


def with_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def without_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def test_batches_hold_every_example_and_never_a_last_one_alone():
    for count in range(1, 40):
        for size in range(1, 12):
            sizes = batch_sizes(count, size)
            assert sum(sizes) == count
            assert len(sizes) == 1 or sizes[-1] > 1 or size == 1
            assert set(sizes[:-1]) <= {size}
            assert sizes[-1] <= size + 1


@pytest.mark.parametrize("count", [9, 65])
def test_a_last_batch_of_one_joins_the_batch_before_it(task, make_context, count):
    task, trained = first(task, count), []

    def loss(model, inputs, targets, indices):
        trained.extend(indices.tolist())
        return nn.functional.cross_entropy(forward(model, inputs), targets)

    context = make_context(task, with_batch_norm())
    training = Training(epochs=1, batch_size=8)
    fit(with_batch_norm(), context, training, loss=loss, per_example=lambda epoch: [torch.arange(count)])
    assert sorted(trained) == list(range(count))


@pytest.mark.parametrize("recipe", ["finetune", "qat", "lsq", "response", "mutual", "self_distill", "movement"])
@pytest.mark.parametrize(
    ("count", "batch_size", "said"),
    [(7, 1, "batch_size=1 gives it no more: take 2"), (1, 32, r"the training data has 1 in all: take more \(limit\)")],
)
def test_a_batch_norm_with_one_example_is_refused_in_a_sentence(task, make_context, recipe, count, batch_size, said):
    task = first(task, count)
    [step] = methods.parse(recipe)
    step = dataclasses.replace(step, training=dataclasses.replace(step.training, epochs=1, batch_size=batch_size))
    model = models.build("digits_cnn_small", task)
    context = make_context(task, models.build("digits_cnn_small", task))
    with pytest.raises(UserError, match=f"batch norm cannot be trained on one example at a time .*; {said}"):
        step.apply(model, context)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 32), (7, 1), (3, 2), (2, 500)])
@pytest.mark.parametrize("schedule", ["onecycle", "linear"])
def test_a_network_without_batch_norms_trains_on_any_number(task, make_context, count, batch_size, schedule):
    context = make_context(first(task, count), without_batch_norm())
    model = fit(without_batch_norm(), context, Training(epochs=2, batch_size=batch_size, schedule=schedule))
    assert len(context.record.history["train_loss"]) == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_one_example_of_each_class_trains(task, make_context):
    rows = [int((task.train.targets == c).nonzero()[0]) for c in range(3)]
    task = dataclasses.replace(task, train=task.train.select(torch.tensor(rows)))
    context = make_context(task, with_batch_norm())
    fit(with_batch_norm(), context, Training(epochs=3))
    assert len(context.record.history["train_loss"]) == 3


def test_micro_batches_never_end_in_one_example_alone(task, make_context):
    task = first(task, 17)  # in micro-batches of 4: the last would be one example

    def loss_of_few(model, inputs, targets):
        if len(targets) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return nn.functional.cross_entropy(forward(model, inputs), targets)

    context = make_context(task, with_batch_norm())
    fit(with_batch_norm(), context, Training(epochs=1, batch_size=17), loss=loss_of_few)
    assert len(context.record.history["train_loss"]) == 1


def test_a_device_without_room_for_two_examples_is_named_where_batch_norms_need_them(task, make_context):
    def loss_of_one(model, inputs, targets):
        if len(targets) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return nn.functional.cross_entropy(forward(model, inputs), targets)

    with pytest.raises(UserError, match="batch norm .* the device has too little memory for two"):
        fit(with_batch_norm(), make_context(task, with_batch_norm()), Training(epochs=1), loss=loss_of_one)
