"""The contract that every method keeps, swept over METHODS: a new method is tested by its line there."""

import copy
import dataclasses
import functools
import json

import pytest
import torch
from torch import nn

from compression import methods, models, params
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods.base import Method
from compression.models import storage
from compression.runs.machine import accelerator
from compression.tasks.task import evaluate, predict
from compression.training.context import Context
from tests.conftest import Kept, kept_child, stripes_task, tiny_bert, words_task

NAMES = list(methods.METHODS)


def subject(needs):
    """What a method is tried on: the task, the untrained model, and the epochs in which it learns the task."""
    torch.manual_seed(0)
    if needs == "text":
        task = words_task()
        steps = {"batch_size": 8, "epochs": 6, "learning_rate": 1e-3}  # gates are learned in hundreds of steps
        return dataclasses.replace(task, training=task.training | steps), tiny_bert(), 6
    task = stripes_task()
    steps = {"batch_size": 16, "epochs": 4}  # a student that begins anew or teaches needs dozens of steps
    task = dataclasses.replace(task, training=task.training | steps)
    return task, models.build("digits_cnn", task), 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(needs)`: a task, a model that knows it, and `context(original, folder)`; each made once."""

    @functools.cache
    def of(needs=""):
        task, model, epochs = subject(needs)

        def context(original, folder, **changes):
            named = {"load": lambda name: models.build(name, task), "build": lambda name: models.build(name, task)}
            named["child"] = kept_child
            return Context(task, original, accelerator(True, "no"), Kept(), 0, folder, **(named | changes))

        start = context(model, tmp_path_factory.mktemp("start"))
        methods.method("finetune")(epochs=epochs).apply(model, start)
        return task, model, context

    return of


@pytest.fixture(scope="module")
def applied(trained, tmp_path_factory):
    """Each method's result on the trained model it is made for, trained where it says that it must be; made once."""

    @functools.cache
    def of(name):
        task, model, context = trained(methods.method(name).requires)
        torch.manual_seed(1)
        original = copy.deepcopy(model).eval().requires_grad_(False)
        step = methods.method(name)()
        step = step.resolved(task)
        there = context(original, tmp_path_factory.mktemp(name))
        start = copy.deepcopy(original).requires_grad_(True)
        model = step.apply(start, there).eval()
        if step.needs_finetune:
            model = methods.method("finetune")().apply(model, dataclasses.replace(there, step_name="after"))
        return step, model, original, there

    return of


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_a_frozen_dataclass_whose_fields_say_what_they_are(name):
    cls = methods.method(name)
    assert issubclass(cls, Method)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.family == methods.family(name)
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")
    described = params.fields(cls)
    assert set(described) >= {f.name for f in dataclasses.fields(cls)} - {"training"}
    assert {field.group for field in described.values()} <= {"", "training"}
    for field in described.values():
        assert field.param.help
        assert field.type in (int, float, bool, str, tuple, dict)
        if field.param.search and field.param.interval:
            assert all(bound in field.param.interval for bound in field.param.search)


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_nothing_are_fields(name):
    assert methods.build(name, {}).inactive() <= set(params.fields(methods.method(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_chains_text_reads_back_to_the_same_step(name):
    step = methods.method(name)()
    assert methods.parse(methods.text([step])) == (step,)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_leaves_a_plain_module_and_the_original_alone(name, applied, trained):
    _, model, original, _ = applied(name)
    assert isinstance(model, nn.Module)
    for module in model.modules():
        assert not hasattr(module, "parametrizations")
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    _, untouched, _ = trained(methods.method(name).requires)
    assert all(
        torch.equal(a, b) for a, b in zip(original.state_dict().values(), untouched.state_dict().values(), strict=True)
    )
    copy.deepcopy(model)


@pytest.mark.parametrize("name", NAMES)
def test_the_result_still_knows_the_task(name, applied, trained):
    _, model, _, _ = applied(name)
    task, *_ = trained(methods.method(name).requires)
    assert evaluate(model, task.test, task)["accuracy"] > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_the_result_reloads_and_exports_with_equal_answers(name, applied, trained, tmp_path):
    _, model, _, _ = applied(name)
    task, *_ = trained(methods.method(name).requires)
    again = storage.load(storage.save(model, tmp_path / "model", {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(model, task.test)[0], rtol=1e-4, atol=1e-5)
    file = export(model, task.example(4), tmp_path / "model.onnx")
    found = check_parity(model, file, task.test, task, threads=1)
    assert found.agreement_within_noise >= 0.998
    # In integer arithmetic near ties go either way; nothing else may change a prediction.
    assert found.agreement >= (0.97 if methods.method(name).family == "quantize" else 0.998)


@pytest.mark.parametrize("name", [name for name in NAMES if methods.method(name).requires])
def test_a_method_that_is_made_for_one_kind_of_model_refuses_another_in_a_sentence(name, trained, tmp_path):
    _, model, context = trained("")
    with pytest.raises(UserError, match="transformer"):
        methods.method(name)().apply(copy.deepcopy(model), context(model, tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_says_is_json(name):
    step = methods.method(name)()
    read = json.loads(json.dumps(params.values(step)))
    assert params.build(type(step), {field: value for field, value in read.items() if value is not None}, name) == step


def test_an_unknown_method_is_refused_with_the_names():
    with pytest.raises(UserError, match="no method 'respond'; there are .*response"):
        methods.parse("respond:temperature=4")


def test_an_unknown_field_is_refused_with_the_names():
    with pytest.raises(UserError, match="'response' has no field 'temp'; it has .*temperature"):
        methods.parse("response:temp=4")


def test_a_field_without_a_value_is_refused():
    with pytest.raises(UserError, match="'temperature' in the step .* has no value"):
        methods.parse("response:temperature")


def test_a_chain_reads_step_by_step():
    first, second = methods.parse("finetune:epochs=2+response:temperature=3,alpha=0.5")
    assert (first.training.epochs, second.temperature, second.alpha) == (2, 3.0, 0.5)
    assert methods.text((first, second)) == "finetune:epochs=2+response:temperature=3.0,alpha=0.5"


def test_training_after_a_terminal_step_is_refused(monkeypatch):
    finetune = methods.method("finetune")
    methods.check_order([finetune(), finetune()])
    monkeypatch.setattr(finetune, "terminal", True)
    with pytest.raises(UserError, match="and finetune leaves none"):
        methods.check_order([finetune(), finetune()])


@pytest.mark.parametrize(
    "later", ["magnitude:sparsity_schedule=lottery", "snip:untrained=true", "grasp:untrained=true"]
)
def test_going_back_to_untrained_weights_is_refused_before_anything_trains(task, later):
    methods.check_task(methods.parse(later), task)
    with pytest.raises(UserError, match="goes back to untrained weights here: it must be the first step"):
        methods.check_task(methods.parse(f"finetune+{later}"), task)
