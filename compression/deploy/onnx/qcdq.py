"""QCDQ: QuantizeLinear, Clip, DequantizeLinear on 8-bit containers, the exchange format that Brevitas writes.

It consists of standard operators only: every code takes a byte, and a Clip before its DequantizeLinear tells how many
bits it has. Files for deployment are smaller (see tensors.py); this format is for tools that read nothing else. ONNX
Runtime rounds its float biases to steps of the input's scale times the weight's, which are large with few bits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from compression.deploy.onnx.export import export
from compression.deploy.onnx.modules import replace_for_export
from compression.deploy.onnx.tensors import OnnxInitializer, OnnxInt8, OnnxWeight
from compression.errors import UserError
from compression.nn.quantized import QuantWeightLayer, code_range

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from compression.nn.inputs import Inputs


@dataclass(frozen=True)
class IntegerWeight:
    """A weight in a QCDQ file: value = scale * (code - zero_point)."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]  # scalar, or one per entry of `axis`
    zero_point: NDArray[np.int8]  # in the shape of `scale`
    bits: int
    axis: int

    @property
    def values(self) -> NDArray[np.float32]:
        """The dequantized weight, in the shape of the codes."""
        along_axis = [-1 if d == self.axis else 1 for d in range(self.codes.ndim)]
        scale, zero_point = (a.reshape(along_axis if a.ndim else ()) for a in (self.scale, self.zero_point))
        return (self.codes.astype(np.float32) - zero_point) * scale


def write(model: nn.Module, example: Inputs, path: Path) -> Path:
    """Write `model`, quantized to 2 to 8 bits, as QCDQ; `example` is a prepared batch of at least 2.

    Raises UserError for a model without quantized layers, and for weights that the format cannot hold: in groups, with
    dynamic or float inputs, or without a code for zero.
    """
    validate(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantWeightLayer)}
    if not layers:
        raise UserError("The model has no quantized layer, and QCDQ is for quantized models; take the format onnx.")
    exported = replace_for_export(copy.deepcopy(model).cpu().eval())
    for name, layer in layers.items():
        module = exported.get_submodule(name)
        if not isinstance(getattr(module, "weight", None), OnnxWeight):
            raise UserError(f"{name} has no fixed levels for its input, which QCDQ takes; use static or qat.")
        # Without `code_step`: codes spread over the byte would not be of `bits` bits to a reader.
        module.weight.set_codes(OnnxInt8(layer.codes.cpu()), layer.code_step)  # type: ignore[union-attr, operator]
        module.bias = OnnxInitializer(None if layer.bias is None else layer.bias.data.cpu())
    export(exported, example, path)
    proto = onnx.load(path, load_external_data=False)  # only names are read
    bits = {f"model.{name}.": layer.bits for name, layer in layers.items()}
    for node, name in list(weight_nodes(proto.graph)):
        insert_clip(proto.graph, node, next(bits[prefix] for prefix in bits if name.startswith(prefix)))
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(path)
    return path


def validate(model: nn.Module) -> None:
    """Raise UserError for layers that QCDQ has no operators for."""
    for name, module in model.named_modules():
        if isinstance(module, QuantWeightLayer) and (module.qscheme == "odd" or module.granularity == "group"):
            raise UserError(
                f"{name} has {module.qscheme} levels per {module.granularity}; QCDQ takes a scale per tensor or "
                "channel and codes with a zero, of 2 to 8 bits."
            )


def weight_nodes(graph: GraphProto) -> Iterator[tuple[NodeProto, str]]:
    """Yield the DequantizeLinear nodes of int8 initializers, with the initializers' names."""
    initializers = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in initializers:
            yield node, node.input[0]


def insert_clip(graph: GraphProto, node: NodeProto, bits: int) -> None:
    """Insert a Clip to the range of `bits` bits before a DequantizeLinear, in place."""
    name = node.input[0]
    bounds = [f"{name}_{bound}" for bound in ("low", "high")]
    for bound, value in zip(bounds, code_range(bits, signed=True), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int8), bound))
    clip = helper.make_node("Clip", [name, *bounds], [f"{name}_clipped"])
    node.input[0] = f"{name}_clipped"
    graph.node.insert(list(graph.node).index(node), clip)


def read(path: Path) -> dict[str, IntegerWeight]:
    """Read the integer weights of a QCDQ file, by the names of their initializers."""
    graph = onnx.load(path).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    clips = {node.output[0]: node for node in graph.node if node.op_type == "Clip"}
    found = {}
    for node in graph.node:
        clip = clips.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if clip is None or clip.input[0] not in arrays:
            continue
        name, low, high = clip.input
        codes = np.clip(arrays[name], arrays[low], arrays[high])
        scale = arrays[node.input[1]]
        zero_point = arrays[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, dtype=np.int8)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        bits = int(arrays[high].astype(int) - arrays[low].astype(int) + 1).bit_length() - 1
        found[name] = IntegerWeight(codes, scale, zero_point, bits, axis)
    return found
