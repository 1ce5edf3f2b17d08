import importlib

import pytest

from compression import models
from compression.errors import UserError
from compression.tasks import TASKS, load
from compression.tasks.glue import CORPORA


@pytest.mark.parametrize("name", TASKS)
def test_every_entry_names_a_function(name):
    module, function = TASKS[name].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_corpus_of_glue_is_a_task():
    assert [name for name in TASKS if name.startswith("glue/")] == [f"glue/{name}" for name in CORPORA]


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="no task 'mnist'.*digits, cifar10, glue/sst2"):
        load("mnist")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(UserError, match=f"limit={limit} is out of range"):
        load("digits", limit=limit)


def test_a_tasks_own_models_can_be_built_for_it():
    task = load("digits")
    inputs = task.example(2)
    for name in (task.model, task.student):
        assert models.build(name, task).eval()(inputs).shape == (2, 10)
