"""A checkpoint knows the conditions of its training, and no training goes on under others."""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn

from compression import methods, models
from compression.errors import UserError
from compression.training.checkpoint import load_checkpoint
from compression.training.hyperparameters import Training
from compression.training.loop import fit
from tests.conftest import stripes


class Stop(Exception):
    pass


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def kill(task, make_context, folder, training, done, **changes):
    """Leave in `folder` the checkpoint of a training that was killed after `done` epochs."""

    def stop(step, steps):
        if step > done * (steps // training.epochs):
            raise Stop

    with contextlib.suppress(Stop):
        fit(network(), make_context(task, network(), folder=folder, **changes), training, on_step=stop)


TRAINING = Training(epochs=4, schedule="cosine", learning_rate=0.05, clip=1.0)
OTHER_FIELDS = {
    "learning_rate": 0.5,
    "batch_size": 64,
    "weight_decay": 0.01,
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup": 0.0,
    "label_smoothing": 0.1,
    "clip": 0.0,
    "augment": False,
    "views": 2,
    "cutout": 2,
    "keep": "last",
    "epochs": 8,
}


def test_every_field_of_a_training_is_tried_here():
    assert {field.name for field in dataclasses.fields(Training)} == set(OTHER_FIELDS)


@pytest.mark.parametrize("name", OTHER_FIELDS)
def test_a_training_with_another_field_is_refused_with_both_values(task, make_context, tmp_path, name):
    kill(task, make_context, tmp_path / "killed", TRAINING, done=2)
    other = dataclasses.replace(TRAINING, **{name: OTHER_FIELDS[name]})
    kept = getattr(TRAINING.resolved(task.training), name)
    context = make_context(task, network(), folder=tmp_path / "rest", resume=tmp_path / "killed")
    said = f"with {name}={kept}, and this one has {name}={OTHER_FIELDS[name]}[:,;]"
    with pytest.raises(UserError, match=said):
        fit(network(), context, other)


def other_data(task):
    return dataclasses.replace(task, train=stripes(256, 7), digest="")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed=0, and this one has seed=1"),
        ({"task": lambda task: dataclasses.replace(task, name="spots")}, "task=stripes, .* task=spots"),
        ({"task": lambda task: dataclasses.replace(task, digest="b")}, "data=stripes, .* data=b"),
        ({"conditions": {"model": "b"}}, "model=a, .* model=b"),
    ],
)
def test_another_seed_task_data_or_model_is_refused(task, make_context, tmp_path, changes, said):
    kill(task, make_context, tmp_path / "killed", TRAINING, done=1, conditions={"model": "a"})
    changes = {name: change(task) if callable(change) else change for name, change in changes.items()}
    given = {"task": task, "original": network(), "resume": tmp_path / "killed"} | changes
    with pytest.raises(UserError, match=said):
        fit(network(), make_context(**given), TRAINING)


def test_other_data_of_a_task_without_a_digest_are_refused(task, make_context, tmp_path):
    task = dataclasses.replace(task, digest="")
    kill(task, make_context, tmp_path / "killed", TRAINING, done=1)
    context = make_context(dataclasses.replace(task, train=stripes(256, 7)), network(), resume=tmp_path / "killed")
    with pytest.raises(UserError, match="data=.*, and this one has data="):
        fit(network(), context, TRAINING)


@pytest.mark.parametrize(
    ("recipe", "other", "said"),
    [
        ("response:alpha=0.5", "response:alpha=0.7", "alpha=0.5, and this one has alpha=0.7"),
        ("response:temperature=2", "response:temperature=3", "temperature=2.0, and this one has temperature=3.0"),
        ("qat:bits=8", "qat:bits=4", "bits=8, and this one has bits=4"),
        ("qat", "lsq", "method=Qat.*, and this one has .*method=Lsq"),
        ("feature:weight=1", "feature:weight=2", "weight=1.0, and this one has weight=2.0"),
        ("structured:criterion=bn_scale", "structured:criterion=bn_scale,penalty=0.1", "penalty=.* has penalty=0.1"),
        ("movement:sparsity=0.5", "movement:sparsity=0.6", "sparsity=0.5, and this one has sparsity=0.6"),
    ],
)
def test_another_field_of_the_method_is_refused(task, make_context, tmp_path, recipe, other, said):
    start = models.build("digits_cnn_small", task)

    def apply(recipe, **places):
        [step] = methods.parse(recipe)
        step = dataclasses.replace(step, training=dataclasses.replace(step.training, epochs=1, views=0))
        return step.apply(models.build("digits_cnn_small", task), make_context(task, start, **places))

    apply(recipe, folder=tmp_path / "whole")
    with pytest.raises(UserError, match=said):
        apply(other, folder=tmp_path / "rest", resume=tmp_path / "whole")


@pytest.mark.parametrize("epochs", [2, 3, 8])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_another_number_of_epochs_goes_on_where_it_ends_as_a_fresh_training_does(
    task, make_context, tmp_path, epochs, keep
):
    training = dataclasses.replace(TRAINING, schedule="constant", warmup=0.0, keep=keep)
    kill(task, make_context, tmp_path / "killed", training, done=2)
    longer = dataclasses.replace(training, epochs=epochs)
    context = make_context(task, network(), folder=tmp_path / "rest", resume=tmp_path / "killed")
    resumed = fit(network(), context, longer)
    assert [step for step, _ in context.record.history.get("train_loss", [])] == list(range(3, epochs + 1))
    fresh = fit(network(), make_context(task, network(), folder=tmp_path / "fresh"), longer)
    for one, other in zip(fresh.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"schedule": "onecycle"}, 8),
        ({"schedule": "linear"}, 8),
        ({"schedule": "constant", "warmup": 0.3}, 8),
        ({"schedule": "constant", "warmup": 0.0}, 1),  # the checkpoint is past it
    ],
)
def test_another_number_of_epochs_is_refused_where_the_course_would_have_been_another(
    task, make_context, tmp_path, changes, epochs
):
    training = dataclasses.replace(TRAINING, **changes)
    kill(task, make_context, tmp_path / "killed", training, done=2)
    context = make_context(task, network(), resume=tmp_path / "killed")
    with pytest.raises(UserError, match=f"epochs=4, and this one has epochs={epochs}: .*schedule=constant"):
        fit(network(), context, dataclasses.replace(training, epochs=epochs))


@pytest.mark.parametrize("fixed", [{"on_step": lambda step, steps: None}, {"name": "round-0"}])
def test_another_number_of_epochs_is_refused_where_more_than_the_rates_follows_from_it(
    task, make_context, tmp_path, fixed
):
    training = dataclasses.replace(TRAINING, schedule="constant", warmup=0.0)
    fit(network(), make_context(task, network(), folder=tmp_path / "whole"), training, **fixed)
    context = make_context(task, network(), resume=tmp_path / "whole")
    with pytest.raises(UserError, match="epochs=4, and this one has epochs=8"):
        fit(network(), context, dataclasses.replace(training, epochs=8), **fixed)


def test_a_number_written_in_another_way_is_the_same_number(task, make_context, tmp_path):
    kill(task, make_context, tmp_path / "killed", dataclasses.replace(TRAINING, clip=1), done=2)
    context = make_context(task, network(), folder=tmp_path / "rest", resume=tmp_path / "killed")
    fit(network(), context, dataclasses.replace(TRAINING, clip=1.0))
    assert len(context.record.history["train_loss"]) == 2


def test_a_checkpoint_of_an_earlier_version_is_refused(task, make_context, tmp_path):
    kill(task, make_context, tmp_path, TRAINING, done=1)
    content = load_checkpoint(tmp_path / "train.pt")
    del content["conditions"]  # what version 0.1 did not write
    torch.save(content, tmp_path / "train.pt")
    with pytest.raises(UserError, match=r"is of version 0.1 .*start again without resume"):
        fit(network(), make_context(task, network(), resume=tmp_path), TRAINING)


@pytest.mark.parametrize(
    "damage",
    [
        {"model": {}},
        {"best": {"other": 1}},
        {"random": torch.zeros(3)},
        {"scheduler": 5},
        {"epoch": "two"},
        {"conditions": 5},
        {"conditions": {}},
    ],
)
def test_a_checkpoint_with_a_damaged_part_is_refused(task, make_context, tmp_path, damage):
    kill(task, make_context, tmp_path, TRAINING, done=1)
    torch.save(load_checkpoint(tmp_path / "train.pt") | damage, tmp_path / "train.pt")
    with pytest.raises(UserError, match="checkpoint"):
        fit(network(), make_context(task, network(), resume=tmp_path), TRAINING)
