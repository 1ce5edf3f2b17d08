"""Resuming whole runs: by the command they were started with, or not at all."""

import dataclasses
import json

import mlflow
import pytest
import torch

from compression import methods, models, tasks
from compression.errors import UserError
from compression.runs import chain, loading
from compression.runs.settings import Settings
from compression.training import loop


def quick(**changes):
    return Settings(**{"task": "digits", "model": "mlp", "limit": 60, "threads": 1} | changes)


FINETUNE = methods.build("finetune", {"epochs": "3", "learning_rate": "0.01"})


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def killed(store):
    """The id of a run of FINETUNE that died in its second epoch, and left the checkpoint of its first."""
    real, calls = loop.score, []

    def dies_at_the_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise Stop
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "score", dies_at_the_second)
        with pytest.raises(Stop):
            chain.train(quick(), FINETUNE)
    [checkpoint] = store.glob("home/runs/*/train.pt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    return checkpoint.parent.name


@pytest.mark.parametrize(
    ("settings", "fields", "said"),
    [
        ({"seed": 1}, {}, "seed=0, and this one has seed=1"),
        ({"limit": 50}, {}, "limit=60, data=.*, and this one has limit=50, data="),
        ({"limit": None}, {}, "limit=60, .* has limit=none"),
        ({"model": "digits_cnn_small"}, {}, "model=mlp, and this one has model=digits_cnn_small"),
        ({}, {"learning_rate": 0.1}, "learning_rate=0.01, and this one has learning_rate=0.1"),
        ({}, {"batch_size": 7}, "batch_size=.*, and this one has batch_size=7"),
        ({}, {"epochs": 6}, "epochs=3, and this one has epochs=6: .*schedule=constant"),
    ],
)
def test_a_run_is_not_resumed_by_another_command(killed, settings, fields, said):
    step = dataclasses.replace(FINETUNE, training=dataclasses.replace(FINETUNE.training, **fields))
    with pytest.raises(UserError, match=said):
        chain.train(quick(resume=killed, **settings), step)
    [run] = mlflow.search_runs(max_results=1, order_by=["attributes.start_time DESC"], output_format="list")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("recipe", ["finetune:epochs=3,learning_rate=0.01", "finetune:epochs=3+static"])
def test_a_training_from_the_start_is_not_resumed_by_a_compression(killed, recipe):
    with pytest.raises(UserError, match="command=train, .*and this one has command=compress"):
        chain.compress(quick(resume=killed), methods.parse(recipe))


def test_what_trains_nothing_resumes_nothing(killed):
    with pytest.raises(UserError, match=f"resume={killed} goes on with a training, and evaluate has none"):
        chain.evaluate(quick(resume=killed))


def test_every_step_of_a_chain_is_a_condition_of_all_its_trainings(store):
    from compression.runs import machine, resume
    from compression.runs.job import Job
    from compression.tracking.null_run import NullRun

    settings, steps = quick(), methods.parse("magnitude:sparsity=0.5+finetune:epochs=2")
    with NullRun.start() as run:
        job = Job(settings, tasks.load("digits", limit=60), machine.prepare(settings), run, "compress")
        found = resume.run_conditions(job, job.resolved(steps))
    assert found["steps"] == "magnitude+finetune"
    assert found["magnitude.sparsity"] == 0.5
    assert found["finetune.epochs"] == 2
    json.dumps(found)  # numbers, texts and lists alone: a checkpoint holds nothing else


@pytest.mark.parametrize("limit", [1, 2])
def test_a_split_of_one_example_does_not_make_a_model_unfit(store, limit):
    task = tasks.load("digits", limit=limit)
    assert loading.open_model("mlp", task) is not None


def test_a_model_of_other_outputs_is_still_told_by_one_example():
    task = tasks.load("digits", limit=1)
    model = models.build("mlp", dataclasses.replace(task, outputs=3))
    with pytest.raises(UserError, match="mine gives 3 outputs and digits has 10"):
        loading.require_fit(model, task, "mine")


def test_outputs_that_are_not_one_row_an_example_are_refused():
    task = tasks.load("digits", limit=5)

    class Mixing(torch.nn.Module):
        def forward(self, images):
            return images.new_zeros(1, 10)

    with pytest.raises(UserError, match=r"outputs of the shape \(1, 10\) for 2 examples"):
        loading.require_fit(Mixing(), task, "mine")
