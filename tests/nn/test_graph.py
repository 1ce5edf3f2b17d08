"""The graph says what the calls of a model really were: repeated, in place, shared, scripted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression.nn.graph import record_graph, replace_module, replace_modules
from tests.networks import Network


def graph_of(call, **layers):
    return record_graph(Network(call, **layers), torch.randn(4, 3))


def names(nodes):
    return [node.name or node.target.__name__ for node in nodes]


def test_calls_and_functions_come_in_their_order_and_a_layer_called_twice_twice():
    graph = graph_of(lambda m, x: F.relu(m.a(m.a(x)) + 1), a=nn.Linear(3, 3))
    assert names(graph.nodes) == ["a", "a", "add", "relu"]
    first, second = graph.calls("a")
    assert graph.only_call("a") is None
    assert graph.source(second) is first
    assert graph.producer(first.inputs[0]) is None
    assert graph.nodes[-1].outputs[0] in graph.outputs


def test_a_tensor_read_twice_has_two_readers_and_no_only_one():
    graph = graph_of(lambda m, x: (lambda y: m.b(y) - y)(m.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    [made] = graph.calls("a")[0].outputs
    assert names(graph.readers(made)) == ["b", "sub"]
    assert graph.only_reader(made) is None
    assert graph.source(graph.calls("b")[0]) is None


def test_what_the_model_returns_has_its_caller_as_a_reader():
    graph = graph_of(lambda m, x: (lambda y: {"logits": m.b(y), "hidden": [y]})(m.a(x)), a=nn.Linear(3, 3), b=nn.Tanh())
    [made] = graph.calls("a")[0].outputs
    assert names(graph.readers(made)) == ["b"]
    assert graph.only_reader(made) is None


def test_an_operation_in_place_makes_another_value_of_the_tensor():
    def call(m, x):
        y = m.a(x)
        m.relu(y)  # what it returns is y itself
        y += 1
        y[:, 0] = 0
        return m.b(y)

    graph = graph_of(call, a=nn.Linear(3, 3), relu=nn.ReLU(inplace=True), b=nn.Linear(3, 3))
    assert names(graph.nodes) == ["a", "relu", "add_", "__setitem__", "b"]
    assert [graph.source(node) for node in graph.nodes[1:]] == list(graph.nodes[:-1])


def test_a_change_through_a_view_leaves_a_value_that_nobody_is_known_to_have_made():
    def call(m, x):
        y = m.a(x)
        y[:, 0].add_(1)
        return m.b(y)

    graph = graph_of(call, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    [node] = graph.calls("b")
    assert graph.producer(node.inputs[0]) is None


def test_what_returns_its_input_is_seen_through():
    layers = {"a": nn.Linear(3, 3), "nothing": nn.Identity(), "dropout": nn.Dropout(0.5), "b": nn.Linear(3, 3)}
    graph = graph_of(lambda m, x: m.b(m.dropout(m.nothing(m.a(x)))), **layers)
    assert graph.source(graph.calls("b")[0]) is graph.calls("a")[0]
    assert len(graph.calls("nothing")) == 1


@torch.jit.script
def scripted(values: torch.Tensor) -> torch.Tensor:
    return values * torch.sigmoid(values)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.square()


@pytest.mark.parametrize("function", [scripted, Squared.apply, torch.ops.aten.relu])
def test_functions_that_python_cannot_look_into_are_readers_too(function):
    graph = graph_of(lambda m, x: (lambda y: m.b(y) - function(y))(m.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    assert graph.source(graph.calls("b")[0]) is None


def test_parameters_that_functions_read_or_two_modules_own_are_entangled():
    a, b, c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    c.weight = b.weight
    graph = graph_of(lambda m, x: m.c(m.b(m.a(x))) @ m.a.weight, a=a, b=b, c=c)
    assert graph.entangled == {"a", "b", "c"}
    assert graph.only_call("a") is None
    assert graph.nodes[-1].parameters == ("a.weight",)


def test_arguments_by_name_are_inputs():
    graph = graph_of(lambda m, x: m.b(input=m.a(input=x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    assert graph.source(graph.calls("b")[0]) is graph.calls("a")[0]


def test_attention_is_one_call():
    graph = graph_of(lambda m, x: m.attention(*3 * [x], need_weights=False)[0], attention=nn.MultiheadAttention(3, 1))
    assert names(graph.nodes) == ["attention"]
    assert graph.read_by_functions == {"attention.out_proj"}


def test_the_model_is_left_as_it_was_also_when_it_fails():
    model = Network(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 3), b=nn.Linear(4, 4)).train()
    model.b.eval()
    with pytest.raises(RuntimeError):
        record_graph(model, torch.randn(4, 3))
    assert (model.training, model.a.training, model.b.training) == (True, True, False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_module_is_replaced_under_all_its_names():
    shared = nn.Linear(3, 3)
    model = Network(lambda m, x: x, a=shared, b=shared, part=nn.Sequential(shared, nn.ReLU()))
    replace_module(model, "b", nn.Identity())
    assert model.a is model.b is model.part[0]
    assert type(model.a) is nn.Identity


def test_two_modules_swap_their_places():
    model = nn.Sequential(nn.MaxPool2d(2), nn.ReLU())
    replace_modules(model, {"0": model[1], "1": model[0]})
    assert [type(m) for m in model] == [nn.ReLU, nn.MaxPool2d]
