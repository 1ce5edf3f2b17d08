"""Turning the functions of a network into modules, which quantizers can find and replace: `F.relu`, `y += x`, `x.mean`.

The network becomes a `torch.fx.GraphModule` with the layers of the original under their names.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compression.nn.graph import COMPOSITE, record_graph
from compression.nn.inputs import forward
from compression.nn.layers import Add, Concat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from compression.nn.inputs import Inputs

SUMS = (operator.add, operator.iadd, torch.add, Tensor.add, Tensor.add_, "add", "add_")
RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, "relu", "relu_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
MEANS = (torch.mean, Tensor.mean, "mean")
SPATIAL = ({2, 3}, {-2, -1})  # the dimensions of an image's height and width
POOLINGS: dict[Any, Callable[..., nn.Module]] = {
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
DROPOUTS: dict[Any, type[nn.Dropout | nn.Dropout1d | nn.Dropout2d]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
}
MODULAR = "modular"  # the entry of a model's spec that says that `trace_modular` made it, with the shape of an image
IN_TRAINING = "modular_in_training"  # the entry that says false where only the evaluation could be traced
# Errors of a symbolic trace of Python that it cannot follow: conditions on values, loops over shapes, …
UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError, KeyError)


class Modularized(fx.GraphModule):
    """A network whose functions have become modules, by `modularize`."""

    def __deepcopy__(self, memo: Any) -> Modularized:
        """A copy with the name of its class and the spec that it is stored by, which torch.fx would leave out."""
        made = cast("Modularized", super().__deepcopy__(memo))
        type(made).__name__ = type(self).__name__
        if hasattr(self, "spec"):
            made.spec = copy.deepcopy(self.spec, memo)
        return made


class Mean(nn.Module):
    """The mean over height and width, `(batch, channels)`; `pool` is the module that a quantizer replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, input: Tensor) -> Tensor:
        """Means `(batch, channels)` of `input` `(batch, channels, height, width)`."""
        means: Tensor = self.pool(input)
        return means.flatten(1)


def modularize(model: nn.Module, example: Inputs, trains: bool = True) -> nn.Module:
    """The network with modules in the place of functions on images, and the parameters of `model`; or `model` itself.

    It stays as it is if it has no such functions, if torch.fx cannot follow its Python, if it computes something else
    in training than in evaluation, or if the logits of the result would differ on the prepared batch `example`. One
    that no longer `trains` may compute something else in training, such as auxiliary logits; what it has for that
    alone is left out.
    """
    if not isinstance(example, Tensor) or not _has_image_functions(model, example):
        return model
    for in_training in (True,) if trains else (True, False):
        with contextlib.suppress(*UNTRACEABLE):
            made = trace_modular(copy.deepcopy(model), example, in_training)
            # Batches of two sizes, so that a size which the trace took for a constant shows.
            if all(_same_logits(model, made, example[:size]) for size in (1, 2)):
                return trace_modular(model, example, in_training)
    return model


def _has_image_functions(model: nn.Module, example: Tensor) -> bool:
    replaced = {*SUMS, *CONCATENATIONS, *RELUS, *MEANS, *POOLINGS}
    nodes = record_graph(model, example).nodes
    return any(not node.name and node.target in replaced and len(node.inputs[0].shape) == 4 for node in nodes)


def trace_modular(model: nn.Module, example: Tensor, in_training: bool = True) -> Modularized:
    """Trace the model and replace its functions on images by modules; `example` is a batch of the size of its images.

    Raises one of UNTRACEABLE if torch.fx cannot follow the model, or if it is another function `in_training`.
    """
    training = model.training
    try:
        trained, graph = (_Tracer().trace(model.train(mode)) for mode in (in_training, False))
        values = _Values(Modularized(model.eval(), graph)).of(example)
    finally:
        model.train(training)
    # A trace follows one branch of `if self.training`: the two graphs are equal where Python asks for nothing but
    # dropout.
    if [_signature(node) for node in trained.nodes] != [_signature(node) for node in graph.nodes]:
        raise ValueError(f"{type(model).__name__} computes something else in training than in evaluation")
    replacements = {
        node: module
        for node, twin in zip(graph.nodes, trained.nodes, strict=True)
        if (module := _module_for(node, twin, values)) is not None
    }
    made = Modularized(model, graph, type(model).__name__)
    if hasattr(model, "spec"):
        entries = {MODULAR: list(example.shape[1:])} | ({} if in_training else {IN_TRAINING: False})
        made.spec = model.spec | entries  # type: ignore[operator]
    for node, module in replacements.items():
        name = _free_name(made, node.name)
        made.add_submodule(name, module)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, _tensors(node, module)))
        graph.erase_node(node)
    graph.eliminate_dead_code()  # the sizes that a pooling was given
    made.recompile()
    return made.train(training)


class _Values(fx.Interpreter):
    """Runs a graph and keeps what each node returned."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def of(self, example: Tensor) -> dict[fx.Node, Any]:
        """Run it on `example`."""
        with torch.no_grad():
            self.run(example)
        return self.env


class _Tracer(fx.Tracer):
    """Traces into modules with children, except those that are one call to `record_graph`, torch's and the lab's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_ours = type(m).__module__.startswith("compression.nn.")
        is_node = isinstance(m, COMPOSITE) or not list(m.children())
        return is_ours or is_node or super().is_leaf_module(m, module_qualified_name)


def _signature(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.target, [argument.name for argument in node.all_input_nodes]


def _module_for(node: fx.Node, trained: fx.Node, values: Mapping[fx.Node, Any]) -> nn.Module | None:
    """The module that does what `node` does with images of the sizes in `values`, if there is one.

    `trained` is the same node of the graph in training.
    """
    if node.target in CONCATENATIONS:
        return _concat_module(values, *node.args, **node.kwargs)
    tensors = [each for each in node.all_input_nodes if isinstance(values[each], Tensor)]
    if node.op not in ("call_function", "call_method") or not tensors or node.args[: len(tensors)] != tuple(tensors):
        return None
    others: list[Any] = [values[a] if isinstance(a, fx.Node) else a for a in node.args[len(tensors) :]]
    options: dict[str, Any] = {name: values[v] if isinstance(v, fx.Node) else v for name, v in node.kwargs.items()}
    if node.target in DROPOUTS and len(tensors) == 1:
        return _dropout_module(node, trained)
    shapes = [tuple(values[tensor].shape) for tensor in tensors]
    if len(shapes[0]) != 4 or any(isinstance(v, Tensor) for v in options.values()):
        return None
    if node.target in SUMS and len(shapes) == 2 and shapes[0] == shapes[1] and not others and not options:
        return Add()
    if len(tensors) != 1:
        return None
    if node.target in RELUS:
        return nn.ReLU()
    # Over the whole image, as CIFAR networks end: an AdaptiveAvgPool2d has an integer form, an AvgPool2d none.
    if node.target is F.avg_pool2d and _kernel(*others, **options) == shapes[0][2:]:
        return nn.AdaptiveAvgPool2d(1)
    if node.target in POOLINGS and not options.get("return_indices"):
        return POOLINGS[node.target](*others, **options)
    return _mean_module(*others, **options) if node.target in MEANS else None


def _tensors(node: fx.Node, module: nn.Module) -> tuple[Any, ...]:
    """The arguments of the `module` that takes the place of `node`."""
    if isinstance(module, Concat):
        return tuple(cast("list[fx.Node]", node.args[0] if node.args else node.kwargs["tensors"]))
    return node.args[: 2 if isinstance(module, Add) else 1]


def _concat_module(
    values: Mapping[fx.Node, Any], tensors: Any, dim: Any = 0, *, axis: Any = None, **others: Any
) -> nn.Module | None:
    """A `Concat` for images, given in a list or a tuple, along their channels."""
    if not isinstance(tensors, (list, tuple)) or (dim if axis is None else axis) not in (1, -3) or others:
        return None
    return Concat() if all(isinstance(t, fx.Node) and values[t].ndim == 4 for t in tensors) else None


def _kernel(kernel_size: Any, *others: Any, **options: Any) -> tuple[int, int]:
    """Height and width of a mean pooling's kernel; (0, 0) if it has more options than a stride."""
    if len(others) > 1 or options.keys() - {"stride"}:
        return (0, 0)
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[-1])


def _dropout_module(node: fx.Node, trained: fx.Node) -> nn.Module | None:
    """Dropout that is active in training alone; None for one that is always active or never."""
    names = ("p", "training", "inplace")
    given: list[dict[str, Any]] = [dict(zip(names, n.args[1:], strict=False)) | n.kwargs for n in (node, trained)]
    options, in_training = given
    if (options.get("training", True), in_training.get("training", True)) != (False, True):
        return None
    return DROPOUTS[node.target](options.get("p", 0.5))


def _mean_module(dim: Any = None, keepdim: bool = False, **others: Any) -> nn.Module | None:
    if not isinstance(dim, (tuple, list)) or set(dim) not in SPATIAL or others:
        return None
    return nn.AdaptiveAvgPool2d(1) if keepdim else Mean()


def _free_name(model: nn.Module, name: str) -> str:
    while hasattr(model, name):
        name += "_"
    return name


@torch.no_grad()
def _same_logits(model: nn.Module, made: nn.Module, example: Tensor) -> bool:
    training = model.training
    logits, others = forward(model.eval(), example), forward(made.eval(), example)
    model.train(training)
    # Not bit for bit: a mean over two dimensions and a pooling add up in different orders.
    return logits.shape == others.shape and bool(torch.allclose(logits, others, rtol=1e-4, atol=1e-5))
