"""Quantized layers as ONNX: what ONNX Runtime fuses into integer kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.deploy.onnx.lstm import recurrent
from compression.deploy.onnx.tensors import (
    OnnxApart,
    OnnxBias,
    OnnxFloatWeight,
    OnnxWeight,
    Plain,
    Widened,
    dynamic,
    integers,
    op,
    quantize,
    shared_weight,
)
from compression.nn.quantized.clustered import ClusteredConv2d, ClusteredLinear
from compression.nn.quantized.convolution import conv_options
from compression.nn.quantized.half import HalfConv2d, HalfLinear
from compression.nn.quantized.layers import (
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    QuantInput,
    Quantize,
    QuantLinear,
    bias_scale,
)
from compression.nn.quantized.packing import pack
from compression.nn.quantized.qparams import split_groups
from compression.nn.recurrent import BiLSTM


def deployable(model: nn.Module) -> nn.Module:
    """`model` with every quantized layer replaced, in place, by the module that writes it as ONNX."""
    if type(model) in FORMS:
        return FORMS[type(model)](model)
    for name, child in model.named_children():
        setattr(model, name, deployable(child))
    return model


def product(source: nn.Module) -> Callable[..., Tensor]:
    """What a layer does with inputs, a weight and a bias: the product, or the convolution in its geometry."""
    return functools.partial(F.conv2d, **conv_options(source)) if hasattr(source, "kernel_size") else F.linear


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
        self.bias, self.product = _bias(source), product(source)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.product(self.input(inputs), self.weight(), self.bias())


def _bias(source: QuantLinear | QuantConv2d) -> nn.Module:
    step = bias_scale(source)
    if source.bias is None or step is None:
        return Plain(None if source.bias is None else source.bias.data)
    return OnnxBias(source, step)


def _plus(values: Tensor, bias: Tensor | None) -> Tensor:
    return values if bias is None else values + bias


def _input(source: QuantLinear | QuantConv2d) -> nn.Module:
    if not isinstance(source.input, Quantize):
        return nn.Identity()
    apart = source.activation == "affine" and not source.has_integer_kernel
    return OnnxApart(source.input) if apart else quantize(source.input)


def _weight(source: QuantLinear | QuantConv2d) -> nn.Module:
    return OnnxWeight(source) if _runs_on_integers(source) else OnnxFloatWeight(source)


def _runs_on_integers(source: QuantLinear | QuantConv2d) -> bool:
    return source.has_integer_kernel and source.activation in ("affine", "dynamic")


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
        sums = op("MatMulInteger", *operands, dtype=torch.int32, shape=shape)
        values = sums.to(torch.float32) * (scale * self.scale)
        return _plus(values, self.bias())


class OnnxEmbedding(nn.Module):
    """Rows of integers are looked up, then made floats: the table stays small in memory."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, source: QuantEmbedding) -> None:
        super().__init__()
        self.codes = integers(source.codes, source.bits)
        self.middle = 0.5 if source.qscheme == "odd" else 0.0
        self.group = source.group_size
        self.padding = -source.embedding_dim % self.group if self.group else 0
        self.register_buffer("scale", source.scale)
        self.register_buffer("zero_point", source.zero_point)

    def forward(self, indices: Tensor) -> Tensor:
        codes = F.embedding(indices, self.codes()).to(torch.float32)
        if self.group:
            padded = F.pad(codes, (0, self.padding)) if self.padding else codes
            codes = padded.unflatten(-1, (-1, self.group))
        if self.middle:
            codes = codes + self.middle
        if self.zero_point is not None:
            codes = codes - self.of_rows(indices, self.zero_point).to(torch.float32)
        values = codes * self.of_rows(indices, self.scale)
        values = values.flatten(-2) if self.group else values
        return values[..., : -self.padding] if self.padding else values

    def of_rows(self, indices: Tensor, numbers: Tensor) -> Tensor:
        """The numbers of the rows, to meet their codes; a single row is that of the whole table."""
        found = F.embedding(indices, numbers) if len(numbers) > 1 else numbers
        return found.unsqueeze(-1) if self.group else found


class OnnxBlockLinear(nn.Module):
    """MatMulNBits of ONNX Runtime: weights of 4 bits in groups, made floats within the kernel.

    It takes 8 bits as well, but was 2.4 times as slow as the floats for one example of MiniLM (benchmarks/README.md).
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        groups = split_groups(source.codes, "group", source.group_size)
        self.attributes: dict[str, Any] = {
            "K": source.in_features,
            "N": source.out_features,
            "bits": source.bits,
            "block_size": source.group_size,
        }
        self.bias = Plain(source.bias)
        rows, blocks, size = groups.shape
        self.register_buffer("packed", pack(groups, source.bits).view(rows, blocks, size // 2))
        self.register_buffer("scale", source.scale.flatten())
        points = F.pad(source.zero_points.to(torch.int8), (0, blocks % 2))  # a row begins a byte
        stored = [] if source.qscheme == "symmetric" else [Plain(pack(points, source.bits))]
        self.zero_points = nn.ModuleList(stored)  # left out, they are the middle of the codes

    def forward(self, inputs: Tensor) -> Tensor:
        operands = (inputs, self.packed, self.scale, *(points() for points in self.zero_points))
        made: dict[str, Any] = {
            "dtype": torch.float32,
            "shape": (*inputs.shape[:-1], self.attributes["N"]),
            "version": 1,
        }
        return _plus(op("com.microsoft::MatMulNBits", *operands, **made, **self.attributes), self.bias())


def linear(source: QuantLinear) -> nn.Module:
    if source.activation == "dynamic" and source.has_integer_kernel:
        return OnnxDynamicLinear(source)
    return OnnxBlockLinear(source) if _fits_blocks(source) else OnnxLinear(source)


def _fits_blocks(source: QuantLinear) -> bool:
    size = source.group_size
    blocks = size >= 16 and size & (size - 1) == 0
    return blocks and source.bits == 4 and source.qscheme != "odd" and source.activation == "none"


class OnnxHalf(nn.Module):
    """The layer in floats, its weight widened when the file is loaded."""

    def __init__(self, source: HalfLinear | HalfConv2d) -> None:
        super().__init__()
        self.bias = Plain(None if source.bias is None else source.bias.data)
        self.weight, self.product = Widened(source.weight.data), product(source)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.product(inputs, self.weight(), self.bias())


class OnnxClustered(nn.Module):
    """The layer in floats, with a weight from the codebook."""

    def __init__(self, source: ClusteredLinear | ClusteredConv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.product = shared_weight(source), source.bias, product(source)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.product(inputs, self.weight(), self.bias)


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
        return op("GlobalAveragePool", images, dtype=torch.float32, shape=(*images.shape[:2], 1, 1))


# A layer class of the lab that the exporter should write otherwise than its forward joins this table.
FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Quantize: quantize,
    QuantInput: OnnxApart,
    QuantLinear: linear,
    QuantConv2d: OnnxConv2d,
    QuantEmbedding: OnnxEmbedding,
    QuantAdd: OnnxAdd,
    QuantAvgPool2d: OnnxAvgPool2d,
    ClusteredLinear: OnnxClustered,
    ClusteredConv2d: OnnxClustered,
    HalfLinear: OnnxHalf,
    HalfConv2d: OnnxHalf,
    BiLSTM: recurrent,
}
