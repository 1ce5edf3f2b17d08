"""The blocks of a transformer and the linear layers in them, described by how the model calls them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.nn.graph import Graph, Node, record_graph, tensors_in
from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, forward, map_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXAMPLES, LENGTH = 2, 16  # of the short example that shows how a model calls its modules


@dataclass(frozen=True)
class Group:
    """Linear layers of one block that are given one and the same tensor, and are called once; all by name."""

    block: str
    layers: tuple[str, ...]
    # Modules of the block before these layers, the nearest first, whose outputs go nowhere but into them.
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model by name, in the order of their calls, each with its groups of layers in theirs."""

    groups: dict[str, tuple[Group, ...]]
    # The first block whose arguments besides the hidden states (masks, positions) are the same tensors as each one's.
    same_arguments: dict[str, str]

    @property
    def layers(self) -> list[str]:
        """The names of all layers in groups."""
        return [name for groups in self.groups.values() for group in groups for name in group.layers]


@dataclass(frozen=True)
class Arguments:
    """What a block is called with besides the hidden states, which come first."""

    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    states: str = ""  # the name of the hidden states, empty where they are given by position

    @classmethod
    def split(cls, call: Call) -> tuple[Tensor, Self]:
        """The hidden states of a call, and its other arguments."""
        by_place = len(call.inputs) - len(call.names)
        named = dict(zip(call.names, call.inputs[by_place:], strict=True))
        if by_place:
            return call.inputs[0], cls(call.inputs[1:by_place], named)
        states = call.names[0]
        return named.pop(states), cls((), named, states)

    def call(self, block: nn.Module, states: Tensor) -> Tensor:
        """The hidden states behind the block, in the shape of `states`."""
        # A copy goes in: a block may add to its input in place, and is called with it several times.
        states = states.clone()
        given = {self.states: states} if self.states else {}
        return first_output(block(*(() if given else (states,)), *self.positional, **given, **self.named))

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The arguments with `function` applied to each tensor, also within tuples, lists and mappings."""
        return type(self)(map_tensors(function, self.positional), map_tensors(function, self.named), self.states)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return list(tensors_in([self.positional, self.named]))


def first_output(output: Any) -> Tensor:
    """The hidden states in what a block returns: all of it, or the first of several."""
    found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` applied to each tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: map_tensors(function, item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def short_example(inputs: Inputs) -> Inputs:
    """The first tokens of the first examples of a batch: how a model calls its modules needs no more."""
    return map_inputs(lambda t: t[:EXAMPLES, :LENGTH] if isinstance(inputs, dict) else t[:EXAMPLES], inputs)


def block_names(model: nn.Module) -> list[str]:
    """The names of the modules in the longest list of modules of one class that hold linear layers; none without."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and len({type(each) for each in module}) == 1
        and all(any(type(part) is nn.Linear for part in each.modules() if part is not each) for each in module)
    }
    longest = max(lists, key=lambda name: len(lists[name]), default=None)
    return [] if longest is None else [f"{longest}.{each}" for each in lists[longest]._modules]


def find_blocks(model: nn.Module, example: Inputs) -> Blocks:
    """The blocks of `model`, a list of transformer layers that each take what the one before returns.

    `example` is a prepared batch, best a short one; `model` is left in eval mode. Raises UserError for a model without
    such a list, and where blocks are left out, called in another order or more than once, or read more of each other
    than the hidden states.
    """
    names = block_names(model)
    if not names:
        raise UserError(
            f"A {type(model).__name__} is no transformer that can be compressed block by block: it has no list of "
            "blocks of one class with linear layers in floats."
        )
    device = next(model.parameters()).device
    example = map_inputs(lambda tensor: tensor.to(device), example)
    model.eval()
    same_arguments = _check_chain(model, names, example)
    graph = record_graph(model, example)
    return Blocks({name: _groups(graph, name) for name in names}, same_arguments)


@torch.no_grad()
def _check_chain(model: nn.Module, names: Sequence[str], example: Inputs) -> dict[str, str]:
    """`Blocks.same_arguments`, from one forward pass; UserError as `find_blocks` raises it."""
    called: list[str] = []
    arguments: dict[str, Arguments] = {}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, tuple[Tensor, ...]] = {}

    def before(call: Call) -> None:
        called.append(call.name)
        states, arguments[call.name] = Arguments.split(call)
        inputs[call.name] = states.clone()  # what changes it in place later is not what was handed on

    def after(call: Call) -> None:
        outputs[call.name] = tuple(tensors_in(call.output))

    blocks = {name: model.get_submodule(name) for name in names}
    with on_forward(blocks, before, before=True), on_forward(blocks, after):
        forward(model, example)
    what = f"A {type(model).__name__} cannot be compressed block by block: its {names[0].rpartition('.')[0]}"
    if called != list(names):
        raise UserError(f"{what} are not called one after the other, once each.")
    earlier: set[int] = set()
    for name, following in itertools.pairwise(names):
        if not torch.equal(outputs[name][0], inputs[following]):
            raise UserError(f"{what} do not each take what the one before returns.")
        earlier.update(map(id, outputs[name]))
        if earlier.intersection(map(id, arguments[following].tensors)):
            raise UserError(f"{what} read more of each other than the hidden states.")
    identities = {name: [id(tensor) for tensor in arguments[name].tensors] for name in names}
    return {name: next(other for other in names if identities[other] == identities[name]) for name in names}


def _groups(graph: Graph, block: str) -> tuple[Group, ...]:
    """The groups of linear layers in the block of this name."""
    prefix = f"{block}."
    modules = [node for node in graph.nodes if node.name.startswith(prefix) and graph.only_call(node.name)]
    sharing: dict[Any, list[Node]] = {}
    for node in modules:
        if type(node.target) is nn.Linear:
            sharing.setdefault(node.inputs[0], []).append(node)
    return tuple(
        Group(
            block,
            tuple(node.name for node in group),
            tuple(node.name for node in reversed(modules) if _leads_only_to(graph, node, group, prefix)),
        )
        for group in sharing.values()
    )


def _leads_only_to(graph: Graph, source: Node, layers: Sequence[Node], prefix: str) -> bool:
    """Whether all that `source` makes reaches the rest of the model through `layers` alone, if at all."""
    if source in layers:
        return False
    values, seen, reached = list(source.outputs), set(source.outputs), False
    while values:
        value = values.pop()
        if value in graph.outputs:
            return False
        for reader in graph.readers(value):
            if reader in layers:
                reached = True
            elif reader.name and not reader.name.startswith(prefix):
                return False
            else:
                new = set(reader.outputs) - seen
                seen |= new
                values += new
    return reached
