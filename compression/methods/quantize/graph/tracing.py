"""Symbolic traces of models with torch.fx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import fx, nn

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Module = TypeVar("Module", bound=nn.Module)


class _LeafTracer(fx.Tracer):
    """Traces into every module that has children, those of torch as well."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def trace_leaves(model: nn.Module) -> fx.Graph:
    """The graph of the calls of the model's leaf modules; raises UserError where torch.fx cannot follow its Python."""
    try:
        return _LeafTracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"torch.fx cannot follow {type(model).__name__}: leave equalize out, or use a model without batch norms."
        ) from error


def module_calls(model: nn.Module) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The calls of leaf modules in the order of execution, with the modules that the model has by then.

    Modules may be replaced between two calls. Raises UserError where torch.fx cannot follow the model.
    """
    for node in trace_leaves(model).nodes:
        if node.op == "call_module":
            yield node, model.get_submodule(str(node.target))


def sole_producer(node: fx.Node, model: nn.Module, kinds: tuple[type[Module], ...]) -> tuple[fx.Node, Module] | None:
    """The call that makes the first input of `node`, and its module.

    None unless the module is one of `kinds` and called once, and `node` is the only user of its output.
    """
    source: Any = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    calls = sum(n.op == "call_module" and n.target == source.target for n in node.graph.nodes)
    module = model.get_submodule(str(source.target))
    return (source, module) if calls == 1 and isinstance(module, kinds) else None
