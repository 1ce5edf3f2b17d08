"""Every method refuses a model without anything to quantize in one sentence, before it trains."""

import copy

import pytest
import torch

from compression import methods, models, params
from compression.errors import UserError
from tests.conftest import tiny_bert, words_task

ALL = methods.of_family("quantize")
SKIPPING = [name for name in ALL if "skip" in params.fields(methods.method(name))]


def case(name, task):
    """A task, and a model for it that the method takes."""
    return (words_task(), tiny_bert()) if methods.method(name).requires else (task, models.build("mlp", task))


@pytest.mark.parametrize("name", SKIPPING)
def test_a_model_whose_layers_are_all_skipped(name, task, make_context):
    task, model = case(name, task)
    # Those that go block by block know the layers of the blocks alone.
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    every = "/".join(n for n in linear if not methods.method(name).requires or ".encoder." in n)
    with pytest.raises(UserError, match="There is nothing to quantize: the model has no .* that is not skipped"):
        methods.method(name)(skip=every).apply(model, make_context(task, copy.deepcopy(model)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("before", ["dynamic", "half", "cluster:epochs=0"])
def test_a_model_that_is_quantized_already(before, name, task, make_context):
    task, model = case(name, task)
    context = make_context(task, copy.deepcopy(model))
    [first] = methods.parse(before)
    with pytest.raises(UserError, match="The model is quantized already: begin with the one in floats"):
        methods.method(name)().apply(first.apply(model, context), context)


def test_a_warning_names_the_recurrent_layers_that_stay_in_floats(task, make_context):
    model = models.build("mlp", task)
    context = make_context(task, copy.deepcopy(model))
    model.memory = torch.nn.LSTM(4, 4)
    methods.method("dynamic")().apply(model, context)
    [warning] = context.record.warnings
    assert warning.startswith("Recurrent layers stay in floats: memory;")
