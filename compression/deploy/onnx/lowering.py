"""Bring a traced program to the operators that the exporter translates, without tracing it again where few differ.

`ExportedProgram.run_decompositions` runs the whole program once more, operator by operator, and takes half of a first
export (4.2 of 7.8 s for a ResNet-20, 8.0 of 16.8 for a BERT of 4 layers; torch 2.14, one core). Inference graphs need
little of it: they have no operators in place, or harmless ones, and all but a few are translated as they are.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

aten = torch.ops.aten
# Of operators that no translation knows and that mean the same under another name.
_SYNONYMS: dict[Any, Any] = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.alias.default: aten.clone.default,
    aten.detach.default: aten.clone.default,
    aten.detach_.default: aten.clone.default,
    aten.lift_fresh_copy.default: aten.clone.default,
}
# Those in place whose functional form has the same arguments.
_FUNCTIONAL: dict[Any, Any] = {
    aten.relu_.default: aten.relu.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.silu_.default: aten.silu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.tanh_.default: aten.tanh.default,
    aten.clamp_.default: aten.clamp.default,
}
_ASSERTIONS = {
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
}


def lower(program: torch.export.ExportedProgram, translated: Collection[Any]) -> bool:
    """Rewrite the graph of `program`, in place, to the operators in `translated`; whether nothing else is left in it.

    Where it returns False the program is as it was in meaning, and has to be decomposed the long way. The program is
    that of a model in eval mode.
    """
    graph = program.graph_module.graph
    if any(isinstance(module, fx.GraphModule) for name, module in program.graph_module.named_modules() if name):
        return False  # branches and loops
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif rewrite := _REWRITES.get(node.target):
            rewrite(node)
        elif node.target in _SYNONYMS:
            node.target = _SYNONYMS[node.target]
        elif node.target in _FUNCTIONAL and _is_last_reader(node):
            node.target = _FUNCTIONAL[node.target]
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return all(_is_known(node.target, translated) for node in graph.nodes if node.op == "call_function")


def _is_known(target: Any, translated: Collection[Any]) -> bool:
    """Whether the exporter translates a function as it is, and the function changes nothing in place."""
    if not isinstance(target, torch._ops.OpOverload):
        return target in translated or target is operator.getitem
    if target.namespace == "onnx_symbolic":  # an ONNX operator by name: see deploy.onnx.functions
        return True
    return target in translated and not target._schema.is_mutable


def _is_last_reader(node: fx.Node) -> bool:
    """Whether nobody can see that `node` changes its first argument: a fresh tensor that is read here alone."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or len(changed.users) != 1 or changed.op != "call_function":
        return False
    source = changed.args[0] if changed.target is operator.getitem else changed
    # What an operator returns may be a view of what it was given.
    schema = getattr(source.target, "_schema", None) if isinstance(source, fx.Node) else None
    return schema is not None and all(output.alias_info is None for output in schema.returns)


def _norm(node: fx.Node) -> None:
    """Let a batch norm that uses its running statistics be the inference operator."""
    values = _arguments(node)
    if values["training"] or values["running_mean"] is None or values["running_var"] is None:
        return
    names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            aten._native_batch_norm_legit_no_training.default, tuple(values[name] for name in names)
        )
    output = node.meta["val"]
    norm.meta = {**node.meta, "val": (output, output.new_empty(0), output.new_empty(0))}
    node.target, node.args, node.kwargs = operator.getitem, (norm, 0), {}


def _dropout(node: fx.Node) -> None:
    """Leave out a dropout, which does nothing outside of training."""
    if not _arguments(node)["train"]:
        node.target, node.args, node.kwargs = aten.clone.default, node.args[:1], {}


def _global_pool(node: fx.Node) -> None:
    """Let the average over all positions be a mean."""
    values = _arguments(node)
    if [*values["output_size"]] == [1, 1] and node.meta["val"].ndim == 4:
        node.target, node.args, node.kwargs = aten.mean.dim, (values[next(iter(values))], [-1, -2], True), {}


def _cast(node: fx.Node) -> None:
    """Let `to` with a dtype be a cast; a device makes no difference in a file."""
    values = _arguments(node)
    dtype = values.get("dtype")
    target = aten.clone.default if dtype in (None, values["self"].meta["val"].dtype) else aten._to_copy.default
    node.target, node.args = target, (values["self"],)
    node.kwargs = {} if target is aten.clone.default else {"dtype": dtype}


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a node by the names in its operator's schema, with defaults."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False))
    return {a.name: given.get(a.name, node.kwargs.get(a.name, a.default_value)) for a in arguments}


_REWRITES: dict[Any, Callable[[fx.Node], None]] = {
    aten.batch_norm.default: _norm,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.adaptive_avg_pool2d.default: _global_pool,
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
}
