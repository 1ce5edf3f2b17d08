"""QCDQ: QuantizeLinear, Clip, DequantizeLinear on 8-bit containers, the exchange format that Brevitas writes.

Standard operators alone: every code takes a byte, and a Clip before its DequantizeLinear says how many bits it has.
What we deploy is smaller (see `quantized.onnx_numbers`); this is for tools that read nothing else. ONNX Runtime rounds
its biases, floats, to steps of the input's scale times the weight's, which are wide where bits are few.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper
from torch import nn

from compression.deploy.onnx.export import export
from compression.deploy.onnx.modules import deployable
from compression.deploy.onnx.tensors import Bytes, OnnxWeight, Plain
from compression.errors import UserError
from compression.nn.inputs import Inputs
from compression.nn.quantized import QuantWeightLayer, code_range


@dataclass(frozen=True)
class Integers:
    """A weight as the file holds it: value = scale * (code - zero_point), scale and zero point along `axis`."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8]
    bits: int
    axis: int

    @property
    def values(self) -> NDArray[np.float32]:
        """The weight in floats."""
        along = [-1 if d == self.axis else 1 for d in range(self.codes.ndim)]
        scale, zero_point = (a.reshape(along if a.ndim else ()) for a in (self.scale, self.zero_point))
        return (self.codes.astype(np.float32) - zero_point) * scale


def write(model: nn.Module, example: Inputs, path: Path) -> Path:
    """Write `model`, quantized to 2 to 8 bits, as QCDQ; `example` as for `deploy.export`.

    Raises UserError for weights in groups, dynamic or without a level at zero, which the format does not know.
    """
    refuse(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantWeightLayer)}
    if not layers:
        raise UserError("The model has no quantized layer, and QCDQ is for quantized models; take the format onnx.")
    plain = deployable(copy.deepcopy(model).cpu().eval())
    for name, layer in layers.items():
        form = plain.get_submodule(name)
        if not isinstance(getattr(form, "weight", None), OnnxWeight):
            raise UserError(f"{name} has no fixed levels for its input, which QCDQ takes; use static or qat.")
        form.weight.set_codes(Bytes(layer.codes.cpu()), layer.code_step)  # type: ignore[union-attr, operator]
        form.bias = Plain(None if layer.bias is None else layer.bias.data.cpu())
    export(plain, example, path)
    proto = onnx.load(path)
    for node, name in list(weights(proto.graph)):
        clip(proto.graph, node, next(m.bits for layer, m in layers.items() if f".{layer}." in name))
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def refuse(model: nn.Module) -> None:
    """UserError for layers that QCDQ has no operators for."""
    for name, module in model.named_modules():
        if isinstance(module, QuantWeightLayer) and (module.qscheme == "odd" or module.granularity == "group"):
            raise UserError(
                f"{name} has {module.qscheme} levels per {module.granularity}; QCDQ takes a scale per tensor or "
                "channel and codes with a zero, of 2 to 8 bits."
            )


def weights(graph: GraphProto) -> Iterator[tuple[NodeProto, str]]:
    """The DequantizeLinear nodes of int8 initializers, and the initializers' names."""
    bytes_ = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in bytes_:
            yield node, node.input[0]


def clip(graph: GraphProto, node: NodeProto, bits: int) -> None:
    """Put a Clip to the codes of `bits` bits before a DequantizeLinear, in place."""
    name = node.input[0]
    ends = [f"{name}_{end}" for end in ("low", "high")]
    for end, value in zip(ends, code_range(bits, signed=True), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int8), end))
    made = helper.make_node("Clip", [name, *ends], [f"{name}_clipped"])
    node.input[0] = f"{name}_clipped"
    graph.node.insert(list(graph.node).index(node), made)


def read(path: Path) -> dict[str, Integers]:
    """The integer weights of a QCDQ file, by the names of their initializers."""
    graph = onnx.load(path).graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    clips = {node.output[0]: node for node in graph.node if node.op_type == "Clip"}
    found = {}
    for node in graph.node:
        clipped = clips.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if clipped is None or clipped.input[0] not in held:
            continue
        name, low, high = clipped.input
        codes = np.clip(held[name], held[low], held[high])
        scale = held[node.input[1]]
        zero_point = held[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, dtype=np.int8)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        bits = int(held[high].astype(int) - held[low].astype(int) + 1).bit_length() - 1
        found[name] = Integers(codes, scale, zero_point, bits, axis)
    return found
