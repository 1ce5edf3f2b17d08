"""Channels that can only be removed together: torch-pruning's dependency graph, and the removal itself."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from compression.errors import UserError, first_line
from compression.nn.graph import tensors_in

if TYPE_CHECKING:
    from compression.nn.inputs import Inputs

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)  # what groups start from
_DEPTHWISE = tp.prune_depthwise_conv_out_channels
OUTPUTS = (tp.prune_conv_out_channels, tp.prune_linear_out_channels, _DEPTHWISE)
INPUTS = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)

Names = dict[int, str]  # a model's modules and parameters by their identity
Removal = Iterable[tuple[Any, Iterable[int]]]  # groups of torch-pruning's, each with the channels of it to remove


def dependency_groups(model: nn.Module, example: Inputs) -> tuple[list[Any], list[nn.Module]]:
    """torch-pruning's groups of the channels of `model` that must be removed together, each with all its channels.

    Also the layers from which no group can be found. Raises UserError where torch-pruning cannot follow the forward
    pass of `model`.
    """
    try:
        return find_groups(dependency_graph(model, example))
    except Exception as error:
        raise UserError(
            f"structured cannot follow how the channels of a {type(model).__name__} depend on one another "
            f"({type(error).__name__}: {first_line(error)}); take a method that leaves its shapes, such as magnitude."
        ) from error


def dependency_graph(model: nn.Module, example: Inputs) -> Any:
    """torch-pruning's graph of the layers whose channels depend on one another."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:  # the graph is that of autograd
        parameter.requires_grad_(True)
    try:
        # An operation of their own behind the outputs, so that a layer that gives them depends on "the output".
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                model.eval(), example, output_transform=lambda out: [t * 1 for t in tensors_in(out)], verbose=False
            )
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def find_groups(graph: Any) -> tuple[list[Any], list[nn.Module]]:
    """The groups of torch-pruning's `graph`, each once, and the layers from which none can be found."""
    layers: list[nn.Module] = [module for module in graph.module2node if isinstance(module, LAYERS)]
    limit = max((max(input_channels(layer), output_channels(layer)) for layer in layers), default=0)
    grouped, groups, lost = set[nn.Module](), [], []
    for layer in layers:
        if layer not in grouped:
            group = find_group(graph, layer, limit)
            if group is None:
                lost.append(layer)
            else:
                groups.append(group)
                grouped.update(output_layers(group))
    return groups, lost


def find_group(graph: Any, layer: nn.Module, limit: int) -> Any | None:
    """The group of all output channels of `layer`; None if an index in it reaches `limit`, the most channels there are.

    torch-pruning's own search goes on for ever where it takes views of windows for flattened feature maps.
    """
    # The walk of `get_pruning_group` (torch-pruning 1.6.1), but what a node has seen is not followed again. Theirs
    # compares whole lists of indices, and where every round brings other ones it does not end.
    pruner = graph.get_pruner_of_module(layer)
    node, function = graph.module2node[layer], pruner.prune_out_channels
    first = tp.dependency.Dependency(function, function, source=node, target=node)
    channels = [tp._helpers._HybridIndex(i, i) for i in range(output_channels(layer))]
    found = {(node, function): (first, {i.idx: i.root_idx for i in channels})}
    stack = [(first, channels)]
    while stack:
        reached, indices = stack.pop()
        for dependency in reached.target.dependencies:
            if not dependency.is_triggered_by(reached.handler):
                continue
            # maps of concatenations, splits and flattened feature maps, in turn
            mapped = indices
            for mapping in dependency.index_mapping:
                mapped = mapping(mapped) if mapping else mapped
            _, roots = found.setdefault((dependency.target, dependency.handler), (dependency, {}))
            if fresh := [i for i in mapped if i.idx not in roots]:
                roots |= {i.idx: i.root_idx for i in fresh}
                stack.append((dependency, fresh))
            if any(i.idx >= limit for i in fresh):
                return None
    group = tp.dependency.Group()
    for dependency, roots in found.values():
        if roots:
            # `add_dep` keeps the indices alone; `root_idxs` says to which channel of the first layer each belongs.
            group.add_dep(dependency, list(roots))
            group[len(group) - 1].root_idxs = list(roots.values())
    return group


def names_of(model: nn.Module) -> Names:
    """The names of the modules of `model` and of their parameters, by identity."""
    return {id(found): name for name, found in [*model.named_modules(), *model.named_parameters()]}


def output_channels(layer: Any) -> int:
    """The number of output channels of a linear layer or convolution."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def input_channels(layer: Any) -> int:
    """The number of input channels of a linear layer or convolution."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def output_layers(group: Any) -> list[nn.Module]:
    """The layers of `group` whose output channels are those of the group."""
    return list({item.dep.target.module: None for item in group if item.dep.handler in OUTPUTS})


def reaches_output(group: Any) -> bool:
    """Whether the model returns a channel of `group`."""
    return any(isinstance(item.dep.target.module, tp.ops._OutputOp) for item in group)


def is_indivisible(model: nn.Module, group: Any) -> bool:
    """Whether no part of `group` can go: it has to go at once, or `model` owns a parameter of it twice.

    Nor can the width of an `nn.MultiheadAttention`, by which it scales its scores.
    """
    # Of a tied weight, torch-pruning would give its new parameter to one owner only.
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    modules = [item.dep.target.module for item in group if isinstance(item.dep.target.module, nn.Module)]
    return (
        channels_together(group) == len(group[0].idxs)
        or any(owners[id(p)] > 1 for module in modules for p in module.parameters(recurse=False))
        or any(isinstance(module, nn.MultiheadAttention) for module in modules)
    )


def channels_together(group: Any) -> int:
    """How many of the channels of `group` have to go at once: one of each group of a grouped layer or group norm."""
    counts, total = [1], len(group[0].idxs)
    for item in group:
        module: Any = item.dep.target.module
        if isinstance(module, nn.GroupNorm):
            parts, channels = module.num_groups, module.num_channels
        elif isinstance(module, nn.modules.conv._ConvNd) and item.dep.handler != _DEPTHWISE:
            parts = module.groups
            channels = input_channels(module) if item.dep.handler in INPUTS else output_channels(module)
        else:
            continue
        # Where its other channels are another group's, behind torch.cat, its parts would have to lose as many of both.
        counts.append(parts if parts == 1 or len(set(item.idxs)) == channels else total)
    # With 4 parts in one layer and 6 in another, 12 go at once: as many from every part of both.
    together = math.lcm(*counts)
    return together if total % together == 0 else total


def channel_rows(module: nn.Module, tensor: Tensor, of_inputs: bool) -> Tensor:
    """Reshape a tensor of the shape of the weight of `module`, a layer or norm: a row for each of its channels.

    Returns `(output channels, numbers)`, or `(input channels, numbers)` if `of_inputs`.
    """
    if not isinstance(module, LAYERS):
        return tensor.movedim(-1, 0).reshape(tensor.shape[-1], -1)
    groups: Any = getattr(module, "groups", 1)
    # a transposed convolution's weight is (inputs, outputs / groups, …), others' is (outputs, inputs / groups, …)
    parts = tensor.reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1)
    if of_inputs == getattr(module, "transposed", False):
        return parts.reshape(tensor.shape[0], -1)
    return parts.transpose(1, 2).reshape(groups * tensor.shape[1], -1)


@torch.no_grad()
def ignore_inputs(model: nn.Module, names: Names, removal: Removal) -> None:
    """Zero, in place, the weights with which layers of `model` read the channels of `removal`."""
    for name, handler, _, indices in removed_slices(names, removal):
        if handler in INPUTS:
            module: Any = model.get_submodule(name)
            removed = torch.zeros(input_channels(module), dtype=torch.bool)
            removed[indices] = True
            module.weight.masked_fill_(over_inputs(module, removed), 0)


def over_inputs(module: Any, values: Tensor) -> Tensor:
    """View `values` of the input channels so that they broadcast over the weight of `module`."""
    # The weight has inputs / groups columns; those of row r are the inputs of the group that r belongs to.
    groups, spatial = getattr(module, "groups", 1), [1] * (module.weight.ndim - 2)
    if getattr(module, "transposed", False):
        return values.view(-1, 1, *spatial)
    return values.view(groups, -1, *spatial).repeat_interleave(module.weight.shape[0] // groups if groups > 1 else 1, 0)


def remove_channels(model: nn.Module, names: Names, removal: Removal) -> None:
    """Remove the channels of `removal` from `model`, in place; its parameters train on or not as before.

    `names` are those of the model in which the groups were found, of which `model` may be a copy.
    """
    # torch-pruning (1.6.1) puts a new parameter in the place of each, and all of them take gradients.
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, handler, node, indices in removed_slices(names, removal):
        # One ParameterPruner serves all bare parameters, and reads the axis to cut from itself.
        handler.__self__.pruning_dim = node.pruning_dim
        if name in trains:  # a parameter that belongs to no layer
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, handler(model.get_parameter(name), indices))
        elif isinstance(module := model.get_submodule(name), nn.LayerNorm):
            _remove_from_norm(module, handler, node.pruning_dim, indices)
        else:
            handler(module, indices)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains[name])


def _remove_from_norm(norm: nn.LayerNorm, handler: Any, axis: int, indices: Iterable[int]) -> None:
    """Remove the channels `indices` along `axis` from a layer norm, in place, with torch-pruning's `handler`.

    That one (1.6.1) leaves the others in the order of a Python set: of 16 channels it may keep 9, 10, 12, 5.
    """
    before = {name: parameter.data for name, parameter in norm.named_parameters()}
    handler(norm, indices)
    for name, values in before.items():
        if (parameter := norm.get_parameter(name)).shape != values.shape:
            kept = torch.ones(values.shape[axis], dtype=torch.bool, device=values.device)
            kept[list(indices)] = False
            parameter.data = values.index_select(axis, kept.nonzero().flatten())


def removed_slices(names: Names, removal: Removal) -> Iterator[tuple[str, Any, Any, list[int]]]:
    """Yield what `removal` takes from each module and parameter: its name, torch-pruning's function and node, indices.

    The indices of all groups together: they count the channels that were there before.
    """
    indices, nodes = defaultdict[tuple[str, Any], set[int]](set), {}
    for group, channels in removal:
        removed = set(channels)
        for item in group:
            node, handler = item.dep.target, item.dep.handler
            if name := names.get(id(node.module)):
                nodes[name, handler] = node
                indices[name, handler] |= {
                    i for i, root in zip(item.idxs, item.root_idxs, strict=True) if root in removed
                }
    for (name, handler), found in indices.items():
        yield name, handler, nodes[name, handler], sorted(found)
