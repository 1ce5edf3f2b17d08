"""Calls of layers are seen in order, outputs can be replaced, and no hook outlives its block."""

import contextlib

import pytest
import torch
from torch import nn

from compression.nn.hooks import on_forward


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


IMAGES = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]


def linear(model):
    return {"last": model[2], "first": model[0]}


@contextlib.contextmanager
def recorded(modules):
    """Every call of `modules` within the block."""
    calls = []
    with on_forward(modules, calls.append):
        yield calls


def test_calls_are_recorded_in_the_order_in_which_they_return(model):
    with recorded(linear(model) | {"": model}) as calls:
        outputs = model(IMAGES)
        model(IMAGES)
    assert [call.name for call in calls] == ["first", "last", ""] * 2
    assert calls[0].module is model[0]
    assert calls[0].inputs[0] is IMAGES
    assert calls[1].output is outputs
    assert hooks(model) == []


def test_gradients_flow_through_recorded_tensors(model):
    with recorded({"last": model[2]}) as calls:
        model(IMAGES)
    calls[0].output_tensor.sum().backward()
    assert model[0].weight.grad is not None


def test_the_tensor_of_a_tuple_is_its_first():
    lstm = nn.LSTM(3, 4)
    with recorded({"lstm": lstm}) as calls:
        outputs, _ = lstm(IMAGES)
    assert calls[0].output_tensor is outputs


def test_no_hook_outlives_a_failing_block(model):
    with pytest.raises(RuntimeError), recorded(linear(model)):
        model(IMAGES[:, :2])
    assert hooks(model) == []


def test_inputs_are_seen_before_an_operation_in_place_changes_them(model):
    negative = []
    with on_forward({"relu": model[1]}, lambda call: negative.append((call.inputs[0] < 0).any()), before=True):
        model(IMAGES)
    assert negative == [True]
    with recorded({"relu": model[1]}) as calls:
        model(IMAGES)
    assert not (calls[0].inputs[0] < 0).any()


def test_what_the_function_returns_replaces_the_output(model):
    with on_forward({"last": model[2]}, lambda call: call.output + 1):
        shifted = model(IMAGES)
    torch.testing.assert_close(shifted, model(IMAGES) + 1)


def test_before_a_call_there_is_no_output_and_inputs_can_be_replaced(model):
    outputs = []

    def zeros(call):
        outputs.append(call.output)
        return (torch.zeros_like(call.inputs[0]),)

    with on_forward({"first": model[0]}, zeros, before=True):
        replaced = model(IMAGES)
    assert outputs == [None]
    torch.testing.assert_close(replaced, model(torch.zeros_like(IMAGES)))
