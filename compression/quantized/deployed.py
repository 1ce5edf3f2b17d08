"""Quantized layers as ONNX: what ONNX Runtime fuses into integer kernels.

Activations become QuantizeLinear (Clip, below 8 bits) DequantizeLinear, weights integer initializers with a
DequantizeLinear. Codes of fewer than 8 bits stay packed in the file at their width, whatever it is: `Unpack` (see
functions.py) is evaluated once, when the file is loaded, and then ONNX Runtime fuses as if the bytes had been there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic, symbolic_multi_out

from compression.quantized.clustered import Clustered, ClusteredConv2d, ClusteredLinear
from compression.quantized.functions import DOMAIN
from compression.quantized.half import HalfConv2d, HalfLinear
from compression.quantized.layers import (
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    Quantize,
    QuantLinear,
    Weighted,
    bias_step,
)
from compression.quantized.numbers import dequantize, merge, split
from compression.quantized.packing import pack

OPSET = 20


def deployable(model: nn.Module) -> nn.Module:
    """`model` with every quantized layer replaced, in place, by the module that writes it as ONNX."""
    if type(model) in FORMS:
        return FORMS[type(model)](model)
    for name, child in model.named_children():
        setattr(model, name, deployable(child))
    return model


def _op(name: str, *inputs: Tensor, dtype: torch.dtype, shape: Any, version: int = OPSET, **attributes: Any) -> Tensor:
    return symbolic(name, inputs, attrs=attributes or None, dtype=dtype, shape=shape, version=version)


class OnnxQuantize(nn.Module):
    """QuantizeLinear, Clip where the codes do not fill a byte, DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, source: Quantize) -> None:
        super().__init__()
        self.narrow = source.bits < 8
        self.register_buffer("scale", source.scale)
        self.register_buffer("zero_point", source.zero_point.to(torch.uint8))
        self.register_buffer("low", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("high", torch.tensor(2**source.bits - 1, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        like: dict[str, Any] = {"shape": values.shape}
        codes = _op("QuantizeLinear", values, self.scale, self.zero_point, dtype=torch.uint8, **like)
        if self.narrow:
            codes = _op("Clip", codes, self.low, self.high, dtype=torch.uint8, **like)
        return _op("DequantizeLinear", codes, self.scale, self.zero_point, dtype=torch.float32, **like)


class OnnxDynamicQuantize(nn.Module):
    """DynamicQuantizeLinear, DequantizeLinear."""

    def forward(self, values: Tensor) -> Tensor:
        codes, scale, zero_point = dynamic(values)
        return _op("DequantizeLinear", codes, scale, zero_point, dtype=torch.float32, shape=values.shape)


def dynamic(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of an input by its own range."""
    types, shapes = (torch.uint8, torch.float32, torch.uint8), (values.shape, (), ())
    return symbolic_multi_out("DynamicQuantizeLinear", (values,), dtypes=types, shapes=shapes, version=OPSET)  # type: ignore[return-value]


def quantize(source: Quantize) -> nn.Module:
    if source.levels == "dynamic":
        return OnnxDynamicQuantize()
    # QuantizeLinear knows no zero point of a half: odd levels stay the float arithmetic that they are in torch.
    return source if source.levels == "odd" else OnnxQuantize(source)


class Codes(nn.Module):
    """Signed integers of an initializer, int8 when it runs, packed in the file at `bits` bits.

    What runs is `multiple` times the code or, where `odd`, times 2 code + 1: the odd numbers that stand for halves.
    """

    packed: Tensor
    size: Tensor

    def __init__(self, codes: Tensor, bits: int, multiple: int = 1, odd: bool = False) -> None:
        super().__init__()
        step = 2 * multiple if odd else multiple
        self.attributes: dict[str, Any] = {
            "bits": bits,
            "step": float(step),
            "offset": float((multiple if odd else 0) - step * 2 ** (bits - 1)),
        }
        self.shape = tuple(codes.shape)
        self.register_buffer("packed", pack(codes, bits))
        self.register_buffer("size", torch.tensor(codes.shape))

    def forward(self) -> Tensor:
        made: dict[str, Any] = {"dtype": torch.int8, "shape": self.shape, "version": 1}
        return _op(f"{DOMAIN}::Unpack", self.packed, self.size, **made, **self.attributes)


class Bytes(nn.Module):
    """Codes of 8 bits: an int8 initializer."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())

    def forward(self) -> Tensor:
        return self.codes


class OnnxWeight(nn.Module):
    """An integer initializer and its DequantizeLinear; odd levels are doubled, which makes their halves whole.

    Fewer than 8 bits are spread over the byte, see `Weighted.multiple`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: Weighted, transposed: bool = False) -> None:
        super().__init__()
        odd = source.levels == "odd"
        codes = source.codes.t() if transposed else source.codes
        self.codes: nn.Module = Bytes(codes) if source.bits == 8 else Codes(codes, source.bits, source.multiple, odd)
        self.axis: dict[str, Any] = {"axis": 1 if transposed else 0} if source.granularity == "channel" else {}
        shape = (-1,) if self.axis else ()
        zero_point = torch.zeros_like(source.scale) if odd else source.zero_points * source.multiple
        self.register_buffer("scale", source.unit.reshape(shape))
        self.register_buffer("zero_point", zero_point.to(torch.int8).reshape(shape))

    def store(self, codes: nn.Module, multiple: int) -> None:
        """Hold `codes` as they are, of which `multiple` times was held."""
        self.codes, self.scale, self.zero_point = codes, self.scale * multiple, self.zero_point // multiple

    def forward(self) -> Tensor:
        codes = self.codes()
        made: dict[str, Any] = {"dtype": torch.float32, "shape": codes.shape}
        return _op("DequantizeLinear", codes, self.scale, self.zero_point, **made, **self.axis)


class OnnxFloatWeight(nn.Module):
    """A weight that no integer kernel takes: integers in the file, made floats once, when it is loaded."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: Weighted) -> None:
        super().__init__()
        self.shape = source.weight.shape
        # Packed even at 8 bits: the exporter would work out the floats of a bare initializer and write those.
        self.codes = Codes(split(source.codes, source.granularity, source.group_size), source.bits)
        self.register_buffer("scale", source.scale.unsqueeze(2))
        self.register_buffer("zero_point", source.zero_points.unsqueeze(2))

    def forward(self) -> Tensor:
        return merge(dequantize(self.codes().to(torch.float32), self.scale, self.zero_point), self.shape)


class OnnxSharedWeight(nn.Module):
    """A weight that is looked up once, when the file is loaded: packed indices and the values they stand for."""

    values: Tensor

    def __init__(self, source: Clustered) -> None:
        super().__init__()
        self.first = 2 ** (source.bits - 1)
        self.codes = Codes(source.indices - self.first, source.bits)
        self.register_buffer("values", source.codebook)

    def forward(self) -> Tensor:
        return F.embedding(self.codes().long() + self.first, self.values.unsqueeze(1)).squeeze(-1)


class OnnxLinear(nn.Module):
    """The layer on a dequantized input; with integers on both sides ONNX Runtime makes it one of their kernels.

    That of a matrix (Gemm) takes the bias along; sequences become a MatMul and an Add, whose bias is best a float.
    """

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        self.input, self.weight = _input(source), _weight(source)
        self.bias, self.float_bias = _bias(source), Plain(source.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        bias = self.bias if inputs.ndim == 2 else self.float_bias
        return F.linear(self.input(inputs), self.weight(), bias())


class OnnxConv2d(nn.Module):
    """As `OnnxLinear`."""

    def __init__(self, source: QuantConv2d) -> None:
        super().__init__()
        self.input, self.weight = _input(source), _weight(source)
        self.bias = _bias(source)
        self.geometry: Any = (source.stride, source.padding, source.dilation, source.groups)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.conv2d(self.input(inputs), self.weight(), self.bias(), *self.geometry)


class OnnxBias(nn.Module):
    """A bias in 32-bit integers, in steps of the input's scale times the weight's."""

    codes: Tensor
    input_scale: Tensor
    weight_scale: Tensor

    def __init__(self, source: QuantLinear | QuantConv2d, step: Tensor) -> None:
        super().__init__()
        assert source.bias is not None
        assert isinstance(source.input, Quantize)
        self.register_buffer("codes", (source.bias.data / step).round().to(torch.int32))
        self.register_buffer("input_scale", source.input.scale)
        self.register_buffer("weight_scale", source.unit.reshape(-1 if source.granularity == "channel" else ()))

    def forward(self) -> Tensor:
        made: dict[str, Any] = {"dtype": torch.float32, "shape": self.codes.shape, "version": 1}
        return _op(f"{DOMAIN}::DequantizeBias", self.codes, self.input_scale, self.weight_scale, **made)


class Plain(nn.Module):
    """A tensor or None, called like the others."""

    value: Tensor | None

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor | None:
        return self.value


def _bias(source: QuantLinear | QuantConv2d) -> nn.Module:
    step = bias_step(source)
    if source.bias is None or step is None:
        return Plain(None if source.bias is None else source.bias.data)
    return OnnxBias(source, step)


def _input(source: QuantLinear | QuantConv2d) -> nn.Module:
    return quantize(source.input) if isinstance(source.input, Quantize) else nn.Identity()


def _weight(source: QuantLinear | QuantConv2d) -> nn.Module:
    return OnnxWeight(source) if _runs_on_integers(source) else OnnxFloatWeight(source)


def _runs_on_integers(source: QuantLinear | QuantConv2d) -> bool:
    return source.integer and source.activation in ("affine", "dynamic")


class OnnxDynamicLinear(nn.Module):
    """DynamicQuantizeLinear, MatMulInteger, and the scales: ONNX Runtime fuses them into one kernel."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        weight = OnnxWeight(source, transposed=True)
        self.codes, self.outputs, self.bias = weight.codes, source.out_features, Plain(source.bias)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point)

    def forward(self, inputs: Tensor) -> Tensor:
        codes, scale, zero_point = dynamic(inputs)
        shape = (*inputs.shape[:-1], self.outputs)
        operands = (codes, self.codes(), zero_point, self.zero_point)
        sums = _op("MatMulInteger", *operands, dtype=torch.int32, shape=shape)
        values = sums.to(torch.float32) * (scale * self.scale)
        bias = self.bias()
        return values if bias is None else values + bias


class OnnxEmbedding(nn.Module):
    """Rows of integers are looked up, then made floats: the table stays small in memory."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: QuantEmbedding) -> None:
        super().__init__()
        self.codes = Bytes(source.codes) if source.bits == 8 else Codes(source.codes, source.bits)
        self.symmetric, self.group, width = source.levels == "symmetric", source.group_size, source.embedding_dim
        self.padding = -width % self.group if self.group else 0
        rows = source.num_embeddings
        self.register_buffer("scale", source.scale.expand(rows, -1).contiguous())
        self.register_buffer("zero_point", source.zero_points.expand(rows, -1).contiguous())

    def forward(self, indices: Tensor) -> Tensor:
        codes = F.embedding(indices, self.codes()).to(torch.float32)
        scale, zero_point = F.embedding(indices, self.scale), F.embedding(indices, self.zero_point)
        if not self.group:
            return codes * scale if self.symmetric else dequantize(codes, scale, zero_point)
        padded = F.pad(codes, (0, self.padding)) if self.padding else codes
        groups = padded.unflatten(-1, (-1, self.group))
        values = dequantize(groups, scale.unsqueeze(-1), zero_point.unsqueeze(-1)).flatten(-2)
        return values[..., : -self.padding] if self.padding else values


class OnnxBlockLinear(nn.Module):
    """MatMulNBits of ONNX Runtime: weights of 4 or 8 bits in groups, made floats within the kernel."""

    packed: Tensor
    scale: Tensor

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        groups = split(source.codes, "group", source.group_size)
        self.attributes: dict[str, Any] = {
            "K": source.in_features,
            "N": source.out_features,
            "bits": source.bits,
            "block_size": source.group_size,
        }
        self.bias = Plain(source.bias)
        rows, blocks, size = groups.shape
        self.register_buffer("packed", pack(groups, source.bits).view(rows, blocks, size * source.bits // 8))
        self.register_buffer("scale", source.scale.flatten())
        points = F.pad(source.zero_points.to(torch.int8), (0, blocks % (8 // source.bits)))  # a row begins a byte
        stored = [] if source.levels == "symmetric" else [Plain(pack(points, source.bits))]
        self.zero_points = nn.ModuleList(stored)  # left out, they are the middle of the codes

    def forward(self, inputs: Tensor) -> Tensor:
        operands = (inputs, self.packed, self.scale, *(points() for points in self.zero_points))
        made: dict[str, Any] = {
            "dtype": torch.float32,
            "shape": (*inputs.shape[:-1], self.attributes["N"]),
            "version": 1,
        }
        product = _op("com.microsoft::MatMulNBits", *operands, **made, **self.attributes)
        bias = self.bias()
        return product if bias is None else product + bias


def linear(source: QuantLinear) -> nn.Module:
    if source.activation == "dynamic" and source.integer:
        return OnnxDynamicLinear(source)
    return OnnxBlockLinear(source) if _fits_blocks(source) else OnnxLinear(source)


def _fits_blocks(source: QuantLinear) -> bool:
    size = source.group_size
    blocks = size >= 16 and size & (size - 1) == 0
    return blocks and source.bits in (4, 8) and source.levels != "odd" and source.activation == "none"


class OnnxHalf(nn.Module):
    """The layer in floats, its weight widened when the file is loaded."""

    halves: Tensor

    def __init__(self, source: HalfLinear | HalfConv2d) -> None:
        super().__init__()
        self.bias = Plain(None if source.bias is None else source.bias.data)
        self.register_buffer("halves", source.weight.data)
        self.geometry: Any = None
        if isinstance(source, HalfConv2d):
            self.geometry = (source.stride, source.padding, source.dilation, source.groups)

    def forward(self, inputs: Tensor) -> Tensor:
        made: dict[str, Any] = {"dtype": torch.float32, "shape": self.halves.shape, "version": 1}
        weight = _op(f"{DOMAIN}::Widen", self.halves, **made)
        if self.geometry is None:
            return F.linear(inputs, weight, self.bias())
        return F.conv2d(inputs, weight, self.bias(), *self.geometry)


class OnnxClustered(nn.Module):
    """The layer in floats, with a weight from the codebook."""

    def __init__(self, source: ClusteredLinear | ClusteredConv2d) -> None:
        super().__init__()
        self.weight, self.bias = OnnxSharedWeight(source), source.bias
        self.geometry: Any = None
        if isinstance(source, ClusteredConv2d):
            self.geometry = (source.stride, source.padding, source.dilation, source.groups)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.geometry is None:
            return F.linear(inputs, self.weight(), self.bias)
        return F.conv2d(inputs, self.weight(), self.bias, *self.geometry)


class OnnxAdd(nn.Module):
    """A sum of two dequantized inputs."""

    def __init__(self, source: QuantAdd) -> None:
        super().__init__()
        self.left, self.right = quantize(source.left), quantize(source.right)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


class OnnxAvgPool2d(nn.Module):
    """The mean of a dequantized image as the operator that has an integer kernel; other poolings as they are."""

    def __init__(self, source: QuantAvgPool2d) -> None:
        super().__init__()
        self.input, self.output_size = quantize(source.input), source.output_size

    def forward(self, inputs: Tensor) -> Tensor:
        images = self.input(inputs)
        if self.output_size not in (1, (1, 1)):
            return F.adaptive_avg_pool2d(images, self.output_size)
        return _op("GlobalAveragePool", images, dtype=torch.float32, shape=(*images.shape[:2], 1, 1))


# A layer class of the lab that the exporter should write otherwise than its forward joins this table.
FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Quantize: quantize,
    QuantLinear: linear,
    QuantConv2d: OnnxConv2d,
    QuantEmbedding: OnnxEmbedding,
    QuantAdd: OnnxAdd,
    QuantAvgPool2d: OnnxAvgPool2d,
    ClusteredLinear: OnnxClustered,
    ClusteredConv2d: OnnxClustered,
    HalfLinear: OnnxHalf,
    HalfConv2d: OnnxHalf,
}
