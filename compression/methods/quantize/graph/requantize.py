"""Quantizing the tensors between layers of integers, so that the layers get integer kernels where they are deployed.

An integer kernel gives integers: ONNX Runtime computes a convolution whose output is not quantized in floats, slower
than before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

from torch import nn

from compression.methods.quantize.calibration.activations import observe_inputs
from compression.methods.quantize.calibration.observers import activation_qparams, minmax, representable_range
from compression.methods.quantize.calibration.scheme import SUM_BITS
from compression.nn.graph import Graph, Value, record_graph, replace_module
from compression.nn.layers import WEIGHTLESS, Concat
from compression.nn.quantized import (
    QParams,
    QuantAdd,
    QuantAvgPool2d,
    QuantConcat,
    QuantInput,
    Quantize,
    QuantWeightLayer,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.methods.quantize.calibration.activations import ActivationStatistics
    from compression.nn.inputs import Inputs


def float_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers in floats, by name."""
    return {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}


def weightless_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The residual sums, concatenations and mean poolings in floats, by name."""
    return {name: m for name, m in model.named_modules() if type(m) in WEIGHTLESS}


def quantize_residuals(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """Quantize the inputs of the `weightless_layers` to 8 bits, in place, over their ranges on `batches`.

    Then those of float layers, as `requantize_inputs` does. A binary network stays as it is: no kernel takes signs
    as inputs, and a sum in integers, which may round a tie otherwise, would flip some.
    """
    if any(isinstance(m, QuantWeightLayer) and m.activation == "odd" for m in model.modules()):
        return model
    modules = weightless_layers(model)
    for name, statistics in observe_inputs(model, modules, batches).items():
        qparams = [_minmax_qparams(of_input) for of_input in statistics]
        replace_module(model, name, quantize_weightless(modules[name], qparams))
    return requantize_inputs(model, float_input_qparams(model, batches), batches[0])


def quantize_weightless(module: nn.Module, inputs: Sequence[QParams]) -> QuantAdd | QuantConcat | QuantAvgPool2d:
    """The integer form of a residual sum, concatenation or mean pooling with these parameters for its inputs."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return QuantAvgPool2d.from_float(module, inputs[0])
    if isinstance(module, Concat):
        return QuantConcat.from_qparams(inputs)
    left, right = inputs
    return QuantAdd.from_qparams(left, right)


def float_input_qparams(model: nn.Module, batches: Sequence[Inputs]) -> dict[str, QParams]:
    """Parameters for the inputs of the float layers over their full ranges, as `requantize_inputs` takes them."""
    statistics = observe_inputs(model, float_layers(model), batches)
    return {name: _minmax_qparams(of_input) for name, [of_input] in statistics.items()}


def _minmax_qparams(statistics: ActivationStatistics) -> QParams:
    return activation_qparams(SUM_BITS, *minmax(statistics))


def requantize_inputs(model: nn.Module, qparams: Mapping[str, QParams], inputs: Inputs) -> nn.Module:
    """Put quantizers before the layers that would keep others from their integer kernels, in place.

    - A float layer behind layers of integers gets its input quantized with its `qparams`, except on sequences, where
      kernels give floats too.
    - Layers, sums and concatenations that share a tensor, but quantize it differently, first get it quantized in one
      way, because a kernel gives its integers in one way.

    One forward pass on the prepared `inputs` shows which layers these are.
    """
    graph = record_graph(model.eval(), inputs)
    quantizers: dict[str, nn.Module] = {
        name: QuantInput.from_scheme(qparams[name]) for name in _float_layers_behind_integers(model, graph)
    }
    # What it is worth: a ResNet-20 of static W4A4 takes 0.85 of the floats' time at one example and 0.66 at 32; with
    # six sums and a convolution left in floats, since 4 bits met a sum's 8 there, it took 1.08 and 0.97.
    for name, quantizer in (quantizers | _common_quantizers(model, graph)).items():
        parts = OrderedDict(input=quantizer, layer=model.get_submodule(name))
        replace_module(model, name, nn.Sequential(parts))
    return model


def _float_layers_behind_integers(model: nn.Module, graph: Graph) -> list[str]:
    """The float layers that run on images or rows with anything that a layer of integers has a part in."""
    in_floats = float_layers(model).keys() - graph.read_by_functions  # what wraps a layer has no weight to read
    found: dict[str, None] = {}  # an ordered set
    affected: set[Value] = set()
    for node in graph.nodes:
        if affected.intersection(node.inputs):
            affected.update(node.outputs)
            if node.name in in_floats and len(node.inputs[0].shape) != 3:
                found[node.name] = None
        if getattr(node.target, "activation", "") == "affine":
            affected.update(node.outputs)
    return list(found)


def _common_quantizers(model: nn.Module, graph: Graph) -> dict[str, nn.Module]:
    """Quantizers to put before the layers of integers that share a tensor with others that quantize it differently.

    Sequences are left out, for their kernels give floats.
    """
    users: dict[Value, dict[str, Quantize]] = {}
    for node in graph.nodes:
        for value, quantizer in zip(node.inputs, input_quantizers(node.target), strict=False):
            if len(value.shape) != 3:
                users.setdefault(value, {})[node.name] = quantizer
    joints = {name for name, module in model.named_modules() if isinstance(module, (QuantAdd, QuantConcat))}
    return {name: made for sharing in users.values() for name, made in _unify(sharing, joints).items()}


def input_quantizers(module: object) -> list[Quantize]:
    """The quantizers of the inputs of a sum, a concatenation or a layer of integers; of anything else, none."""
    if isinstance(module, QuantAdd):
        return [module.left, module.right]
    if isinstance(module, QuantConcat):
        return cast("list[Quantize]", list(module.inputs))
    source = getattr(module, "input", None)
    if isinstance(module, QuantWeightLayer) and isinstance(source, Quantize) and source.qscheme == "affine":
        return [source]
    return []


def _unify(users: Mapping[str, Quantize], joints: set[str]) -> dict[str, nn.Module]:
    """Quantizers for the layers among the `users` of one tensor, so that all of these get it in the same codes.

    The codes are those of the first of the `joints` (sums, concatenations) among the users, or 8 bits over the ranges
    of all of them.
    """
    qparams = {name: quantizer.qparams for name, quantizer in users.items()}
    every = list(qparams.values())
    if all(_same(one, every[0]) for one in every):
        return {}
    # A sum has two inputs and cannot be wrapped in a Sequential: the others follow its codes.
    of_joints = [qparams[name] for name in users if name in joints]
    common = of_joints[0] if of_joints else _spanning(every)
    return {n: Quantize.from_scheme(common) for n, own in qparams.items() if n not in joints and not _same(own, common)}


def _same(one: QParams, other: QParams) -> bool:
    return one.bits == other.bits and bool(one.scale == other.scale) and bool(one.zero_point == other.zero_point)


def _spanning(every: Sequence[QParams]) -> QParams:
    """Eight bits over the union of the ranges."""
    ranges = [representable_range(qparams) for qparams in every]
    return activation_qparams(SUM_BITS, min(low for low, _ in ranges), max(high for _, high in ranges))
