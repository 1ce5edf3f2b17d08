"""The graph of a model: the calls of its modules and functions in one forward pass, and the tensors between them.

It is recorded from a real run, so any Python in the model is followed. A module that is called twice makes two nodes, a
tensor that is read twice has two readers, and an operation in place makes a new value of the tensor that it changes.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compression.nn.inputs import Inputs, map_inputs
from compression.nn.quantized import QuantAdd, QuantAvgPool2d, QuantConcat, QuantWeightLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

EXAMPLES = 2  # with one, the dimension of the batch would look like any other of size 1
# One call each, though they have children: functions read those of the first, and the others quantize their inputs.
COMPOSITE = (nn.MultiheadAttention, QuantWeightLayer, QuantAdd, QuantConcat, QuantAvgPool2d)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor between two operations that change it; compared by identity."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One call of a module, or of a function outside of these modules; compared by identity."""

    name: str  # of the module, the first of its names; "" for a function
    target: nn.Module | Callable[..., Any]
    inputs: tuple[Value, ...]  # every tensor among the arguments, in their order
    outputs: tuple[Value, ...]  # every tensor in the result, and the arguments that were changed in place
    parameters: tuple[str, ...] = ()  # names of the model's parameters among a function's arguments


@dataclass(frozen=True, eq=False)
class Graph:
    """The calls of one forward pass, in the order in which they returned."""

    nodes: Sequence[Node]
    outputs: frozenset[Value]  # of the model
    read_by_functions: frozenset[str]  # modules whose parameters are read outside of their own calls
    entangled: frozenset[str]  # these, and modules whose parameters other modules own, too

    @cached_property
    def _producers(self) -> dict[Value, Node]:
        # What returns its input as it is has not made it.
        return {value: node for node in self.nodes for value in node.outputs if value not in node.inputs}

    @cached_property
    def _readers(self) -> dict[Value, list[Node]]:
        readers: dict[Value, list[Node]] = defaultdict(list)
        for node in self.nodes:
            # What returns its input as it is, like nn.Identity, is no reader: what is given its output is.
            for value in dict.fromkeys(value for value in node.inputs if value not in node.outputs):
                readers[value].append(node)
        return readers

    @cached_property
    def _calls(self) -> dict[str, list[Node]]:
        calls: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if node.name:
                calls[node.name].append(node)
        return calls

    def calls(self, name: str) -> list[Node]:
        """The calls of the module `name`, in order; none if it is not called."""
        return self._calls.get(name, [])

    def only_call(self, name: str) -> Node | None:
        """The call of the module `name`; None if there is not exactly one, or if its parameters are `entangled`.

        Only there may a rewrite change a layer's parameters by what stands before or behind it.
        """
        calls = self.calls(name)
        return calls[0] if len(calls) == 1 and name not in self.entangled else None

    def producer(self, value: Value) -> Node | None:
        """The call that made `value`; None for the model's inputs and for what changed a tensor out of sight."""
        return self._producers.get(value)

    def readers(self, value: Value) -> list[Node]:
        """The calls that are given `value`, in order; whoever calls the model reads its outputs, too."""
        return self._readers.get(value, [])

    def only_reader(self, value: Value) -> Node | None:
        """The call that alone is given `value`; None if there are several, or if the model returns it."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def source(self, node: Node) -> Node | None:
        """The call whose only output is the first input of `node` and goes nowhere else; None if there is none."""
        producer = self.producer(node.inputs[0]) if node.inputs else None
        if producer is None or len(producer.outputs) != 1 or self.only_reader(node.inputs[0]) is not node:
            return None
        return producer


@torch.no_grad()
def record_graph(model: nn.Module, inputs: Inputs) -> Graph:
    """Run `model` in eval mode on the first examples of the prepared `inputs`; its modes are restored afterwards.

    A module without children is one node, and so is one of torch's that computes with the weights of its children.
    """
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    examples = map_inputs(lambda tensor: tensor[:EXAMPLES].to(device), inputs)
    model.eval()
    try:
        # A module's call opens first, a public function within it next, what that dispatches to last: each sees the
        # call around it open, and leaves itself out of the record.
        with recorder.hooks(), _Unseen(recorder), recorder:
            outputs = model(**examples) if isinstance(examples, dict) else model(examples)
    finally:
        for module, training in modes.items():
            module.training = training
    read = {name.rpartition(".")[0] for node in recorder.nodes for name in node.parameters} | _within_attention(model)
    outputs_read = frozenset(recorder.values(outputs))
    return Graph(recorder.nodes, outputs_read, frozenset(read), frozenset(read) | _sharing_parameters(model))


def _within_attention(model: nn.Module) -> set[str]:
    """Names of the layers in torch's own attention, which hands their weights to a function."""
    attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return {name for name, _ in model.named_modules() if name.startswith(tuple(f"{each}." for each in attentions))}


def _sharing_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the modules that own a parameter which another module owns, too."""
    owned = [(id(p), name) for name, m in model.named_modules() for p in m.parameters(recurse=False)]
    owners = Counter(parameter for parameter, _ in owned)
    return frozenset(name for parameter, name in owned if owners[parameter] > 1)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in their order."""
    items: Any = ()
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    elif is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, each.name) for each in fields(value)]
    for item in items:
        yield from tensors_in(item)


class _Recorder(TorchFunctionMode):
    """Records the calls of torch's functions while it is active, and those of the modules that it has hooks in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.open: list[tuple[Any, tuple[Value, ...]]] = []  # arguments of the calls that have not returned yet
        self._model = model
        self._parameters = {id(p): name for name, p in [*model.named_parameters(), *model.named_buffers()]}
        self._values: dict[tuple[int, int], Value] = {}
        self._alive: list[Tensor] = []  # so that no identity is used twice

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Have hooks in the modules that are recorded as long as the block lasts."""
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                if isinstance(module, COMPOSITE) or not list(module.children()):
                    before = module.register_forward_pre_hook(self._before_module, with_kwargs=True)
                    after = module.register_forward_hook(partial(self._after_module, name))
                    stack.callback(before.remove)
                    stack.callback(after.remove)
            yield

    def values(self, value: Any) -> tuple[Value, ...]:
        """The values of the tensors in `value` as they are now, without parameters and buffers."""
        return tuple(self._value(tensor) for tensor in tensors_in(value) if id(tensor) not in self._parameters)

    def _value(self, tensor: Tensor) -> Value:
        key = (id(tensor), tensor._version)  # an operation in place on the tensor, or on a view of it, adds 1
        if key not in self._values:
            self._values[key] = Value(tuple(tensor.shape))
            self._alive.append(tensor)
        return self._values[key]

    def _before_module(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.begin((args, kwargs))

    def _after_module(self, name: str, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        self.end(name, module, output)

    def begin(self, arguments: Any) -> None:
        """Note the arguments of a call before it may change them."""
        self.open.append((arguments, self.values(arguments)))

    def end(self, name: str, target: nn.Module | Callable[..., Any], output: Any) -> None:
        """Record the call that began last, unless it is part of another."""
        arguments, inputs = self.open.pop()
        if self.open:
            return
        # Read again after the call: an argument that was changed in place has a higher version now, and so another
        # value.
        changed = [now for now, before in zip(self.values(arguments), inputs, strict=True) if now is not before]
        outputs = tuple(dict.fromkeys([*self.values(output), *changed]))
        names = (
            () if name else tuple(self._parameters[id(t)] for t in tensors_in(arguments) if id(t) in self._parameters)
        )
        # Python's reading of .shape or .device comes by here as well: no tensor comes out of it, and no node.
        if outputs or names:
            self.nodes.append(Node(name, target, inputs, outputs, names))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.begin((args, kwargs))
        output = func(*args, **kwargs)
        self.end("", func, output)
        return output


class _Unseen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations that no public function of torch called: those of scripted functions, for example."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.recorder.begin((args, kwargs))
        output = func(*args, **kwargs)
        self.recorder.end("", func, output)
        return output


def replace_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put each of `replacements` in the place of the module of that name, in place, under all names that it has."""
    # All are looked up before the first is put in place: two modules may swap places.
    by_identity = {id(model.get_submodule(name)): module for name, module in replacements.items()}
    for name, found in list(model.named_modules(remove_duplicate=False)):
        if id(found) in by_identity:
            model.set_submodule(name, by_identity[id(found)])


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the module `name`, in place, under all names that it has."""
    replace_modules(model, {name: module})
