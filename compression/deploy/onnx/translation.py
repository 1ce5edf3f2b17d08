"""From a torch model to an ONNX graph: torch's exporter, asked once for each structure."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter import _decomp, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

from compression.deploy.onnx.lowering import lower
from compression.deploy.onnx.structure import UnknownStructureError, structure
from compression.deploy.onnx.tensors import OPSET

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    import onnx_ir as ir

Shapes = tuple[dict[int, Any], ...]  # the dynamic dimensions of each input

MOST_GRAPHS = 32  # kept at a time, without weights: a graph of BERT-base takes 1 MB


_GRAPHS: OrderedDict[Hashable, ir.Model] = OrderedDict()  # by structure, the least recently used first


def translate(
    model: nn.Module, inputs: dict[str, Tensor], dynamic: Shapes, outputs: Sequence[str] = ("logits",)
) -> torch.onnx.ONNXProgram:
    """Return the optimized ONNX program of `model`, which is in eval mode on the CPU, called with `inputs` by position.

    `outputs` are the names of what it returns.

    A model whose structure was translated before in this process gets the graph of then with its own weights. Raises
    torch.onnx.OnnxExporterError or RuntimeError if torch cannot translate it.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    key = _key(model, inputs, dynamic)
    with _silent_exporter(), _fast_exporter():
        graph = _GRAPHS.pop(key, None)
        if graph is None:
            program = _export(model, inputs, dynamic, outputs)
            graph = None if key is None else _without_weights(program.model, tensors)
        if graph is not None:
            # Also the first time: optimizing a copy names new values otherwise than optimizing the exporter's graph.
            program = torch.onnx.ONNXProgram(_with_weights(graph, tensors), None)
            _GRAPHS[key] = graph
        # Constants are folded anew for each model: among them are its weights, transposed.
        program.optimize()
    while len(_GRAPHS) > MOST_GRAPHS:
        _GRAPHS.popitem(last=False)
    return program


def _without_weights(model: ir.Model, tensors: dict[str, Tensor]) -> ir.Model | None:
    """Return a copy of a graph without `tensors`; None if one of them went into it under another name or form."""
    copied, storages = model.clone(), {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    for name, value in copied.graph.initializers.items():
        raw = getattr(value.const_value, "raw", None)
        if name in tensors and isinstance(raw, Tensor) and raw.shape == tensors[name].shape:
            value.const_value = None
        elif isinstance(raw, Tensor) and raw.numel() and raw.untyped_storage().data_ptr() in storages:
            return None
    return copied


def _with_weights(graph: ir.Model, tensors: dict[str, Tensor]) -> ir.Model:
    """Return a copy of a graph of `_without_weights` with `tensors` in it."""
    import onnx_ir as ir

    model = graph.clone()
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.tensor(tensors[name].detach(), name=name)
    return model


def _key(model: nn.Module, inputs: dict[str, Tensor], dynamic: Shapes) -> Hashable:
    """Return what a graph is known by; None for a model of unknown structure."""
    try:
        described = structure(model)
    except UnknownStructureError:
        return None
    shapes = [(name, tuple(t.shape), t.dtype) for name, t in inputs.items()]
    return described, tuple(shapes), repr(dynamic), torch.get_default_dtype()


def _export(
    model: nn.Module, inputs: dict[str, Tensor], dynamic: Shapes, outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """Have torch's exporter translate `model`, and optimize nothing yet."""
    program = torch.onnx.export(
        model,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=[*outputs],
        # One entry for `*tensors`, itself a tuple.
        dynamic_shapes=(dynamic,),
        verbose=False,
        optimize=False,
    )
    assert program is not None
    return program


# The exporter builds its registry of 497 operators at every call, 0.7 to 1.3 s long; once a process will do.
_kept_registry = functools.cache(ONNXRegistry.from_torchlib)
_decompose = _fx_passes.decompose_with_registry


@functools.cache
def _translated() -> frozenset[Any]:
    """Return the functions that the exporter translates."""
    return frozenset(_decomp.get_onnx_implemented_overloads(_kept_registry()))


def _lower(program: torch.export.ExportedProgram, registry: ONNXRegistry) -> torch.export.ExportedProgram:
    """Return the program in operators that the exporter translates: by a few rewrites, or else decomposed."""
    return program if lower(program, _translated()) else _decompose(program, registry)


@contextlib.contextmanager
def _fast_exporter() -> Iterator[None]:
    """Let the exporter find the registry that an earlier call built, and decompose only what needs it."""
    build = vars(ONNXRegistry)["from_torchlib"]
    setattr(ONNXRegistry, "from_torchlib", staticmethod(_kept_registry))  # noqa: B010 - mypy takes it for a method
    setattr(_fx_passes, "decompose_with_registry", _lower)  # noqa: B010
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", build)  # noqa: B010
        setattr(_fx_passes, "decompose_with_registry", _decompose)  # noqa: B010


@contextlib.contextmanager
def _silent_exporter() -> Iterator[None]:
    """Suppress what the exporter prints, warns and logs below errors; exceptions still propagate."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
