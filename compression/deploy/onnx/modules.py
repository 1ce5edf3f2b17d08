"""Modules that write quantized layers as ONNX operators which ONNX Runtime fuses into integer kernels."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.deploy.onnx.lstm import OnnxDirection, lstm_module
from compression.deploy.onnx.tensors import (
    OnnxBarrier,
    OnnxBias,
    OnnxFloatWeight,
    OnnxInitializer,
    OnnxWeight,
    OnnxWiden,
    codebook_weight,
    codes_module,
    dynamic_quantize,
    onnx_op,
    quantize_module,
)
from compression.nn.quantized.activations import QuantAdd, QuantAvgPool2d, QuantConcat, QuantInput, Quantize
from compression.nn.quantized.clustered import ClusteredConv2d, ClusteredLinear
from compression.nn.quantized.half import HalfConv2d, HalfLinear
from compression.nn.quantized.layers import QuantConv2d, QuantEmbedding, QuantLinear
from compression.nn.quantized.low_bit import conv_options
from compression.nn.quantized.packing import pack
from compression.nn.quantized.qparams import split_groups
from compression.nn.recurrent import BiLSTM, Direction

if TYPE_CHECKING:
    from collections.abc import Callable


def replace_for_export(model: nn.Module) -> nn.Module:
    """Replace every layer in `EXPORT_MODULES` by the module that writes it, in place; return the model.

    A layer in several places, or under two names, is replaced by one module in all of them, and stored once.
    """
    replaced: dict[nn.Module, nn.Module] = {}

    def replace(module: nn.Module) -> nn.Module:
        if module in replaced:
            return replaced[module]
        # From the outside in: a layer's module writes the quantizers within it itself, in the form that fuses.
        if type(module) in EXPORT_MODULES:
            replaced[module] = EXPORT_MODULES[type(module)](module)
            return replaced[module]
        replaced[module] = module
        for name, child in module._modules.items():  # `named_children` leaves second names out
            if child is not None:
                setattr(module, name, replace(child))
        return module

    return replace(model)


def product_function(source: nn.Module) -> Callable[..., Tensor]:
    """Return the function of inputs, weight and bias that a linear layer or convolution computes."""
    return functools.partial(F.conv2d, **conv_options(source)) if hasattr(source, "kernel_size") else F.linear


class OnnxLinear(nn.Module):
    """A linear layer on a dequantized input, which ONNX Runtime fuses with an integer weight into one kernel.

    Matrices become a Gemm, whose kernel takes the bias as integers. Sequences become a MatMul and an Add, which is
    fastest with a float bias.
    """

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        self.input, self.weight = _input_module(source), _weight_module(source)
        self.bias, self.float_bias = _bias_module(source), OnnxInitializer(source.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        bias = self.bias if input.ndim == 2 else self.float_bias
        return F.linear(self.input(input), self.weight(), bias())


class OnnxConv2d(nn.Module):
    """A convolution on a dequantized input, which ONNX Runtime fuses with an integer weight into one kernel."""

    def __init__(self, source: QuantConv2d) -> None:
        super().__init__()
        self.input, self.weight = _input_module(source), _weight_module(source)
        self.bias, self.product = _bias_module(source), product_function(source)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(batch, in_channels, height, width)` to `(batch, out_channels, ...)`."""
        return self.product(self.input(input), self.weight(), self.bias())


def _bias_module(source: QuantLinear | QuantConv2d) -> nn.Module:
    scale = source.bias_scale
    if source.bias is None or scale is None:
        return OnnxInitializer(None if source.bias is None else source.bias.data)
    return OnnxBias(source, scale)


def _add_bias(values: Tensor, bias: Tensor | None) -> Tensor:
    return values if bias is None else values + bias


def _input_module(source: QuantLinear | QuantConv2d) -> nn.Module:
    if not isinstance(source.input, Quantize):
        return nn.Identity()
    needs_barrier = source.activation == "affine" and not source.has_integer_kernel
    return OnnxBarrier(source.input) if needs_barrier else quantize_module(source.input)


def _weight_module(source: QuantLinear | QuantConv2d) -> nn.Module:
    is_fused = source.has_integer_kernel and source.activation in ("affine", "dynamic")
    return OnnxWeight(source) if is_fused else OnnxFloatWeight(source)


class OnnxDynamicLinear(nn.Module):
    """DynamicQuantizeLinear, MatMulInteger and the scales, which ONNX Runtime fuses into one kernel."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        weight = OnnxWeight(source, transposed=True)
        self.codes, self.outputs, self.bias = weight.codes, source.out_features, OnnxInitializer(source.bias)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        codes, scale, zero_point = dynamic_quantize(input)
        operands = (codes, self.codes(), zero_point, self.zero_point)
        sums = onnx_op("MatMulInteger", *operands, dtype=torch.int32, shape=(*input.shape[:-1], self.outputs))
        # The product of the scales first: ONNX Runtime fuses MatMulInteger, Cast and one Mul, whose factor is a Mul of
        # scales.
        return _add_bias(sums.to(torch.float32) * (scale * self.scale), self.bias())


class OnnxEmbedding(nn.Module):
    """An embedding that looks up rows of integers and dequantizes those: the table stays small in memory."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, source: QuantEmbedding) -> None:
        super().__init__()
        self.codes = codes_module(source.codes, source.bits)
        self.offset = 0.5 if source.qscheme == "odd" else 0.0
        self.group_size = source.group_size
        self.padding = -source.embedding_dim % self.group_size if self.group_size else 0
        self.register_buffer("scale", source.scale)
        self.register_buffer("zero_point", source.zero_point)

    def forward(self, input: Tensor) -> Tensor:
        """Look up `input` of any shape: float32 `(..., embedding_dim)`."""
        codes = F.embedding(input, self.codes()).to(torch.float32)
        if self.group_size:
            # Only the rows that were looked up are filled to whole groups; the table is stored without.
            padded = F.pad(codes, (0, self.padding)) if self.padding else codes
            codes = torch.unflatten(padded, -1, (-1, self.group_size))
        if self.offset:
            codes = codes + self.offset
        if self.zero_point is not None:
            codes = codes - self.look_up_qparams(input, self.zero_point).to(torch.float32)
        values = codes * self.look_up_qparams(input, self.scale)
        values = values.flatten(-2) if self.group_size else values
        return values[..., : -self.padding] if self.padding else values

    def look_up_qparams(self, indices: Tensor, qparams: Tensor) -> Tensor:
        """Return the scales or zero points of rows, broadcastable to their codes.

        `qparams` `(rows, groups)` has one row if the whole table shares it.
        """
        found = F.embedding(indices, qparams) if len(qparams) > 1 else qparams
        return found.unsqueeze(-1) if self.group_size else found


class OnnxMatMulNBits(nn.Module):
    """MatMulNBits of ONNX Runtime: weights of 4 bits in groups, dequantized within the kernel.

    It takes 8 bits as well, but was 2.4 times as slow as the floats for one example of MiniLM (benchmarks/README.md).
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, source: QuantLinear) -> None:
        super().__init__()
        groups = split_groups(source.codes, "group", source.group_size)
        self.attributes: dict[str, int] = {
            "K": source.in_features,
            "N": source.out_features,
            "bits": source.bits,
            "block_size": source.group_size,
        }
        self.bias = OnnxInitializer(source.bias)
        rows, blocks, size = groups.shape
        # (N, blocks, bytes of a block). As the operator wants them: codes + 8, two to a byte, the first in the low
        # half.
        self.register_buffer("packed", pack(groups, source.bits).view(rows, blocks, size // 2))
        self.register_buffer("scale", source.scale.flatten())
        zero_points = F.pad(source.zero_points.to(torch.int8), (0, blocks % 2))  # each row begins with a new byte
        # The operator's default for missing zero points is the middle of the codes: symmetric.
        stored = [] if source.qscheme == "symmetric" else [OnnxInitializer(pack(zero_points, source.bits))]
        self.zero_points = nn.ModuleList(stored)

    def round_inputs(self) -> None:
        """Let the kernel round its inputs to 8 bits, in the blocks of the weights, and multiply integers.

        For a row at 2048x2048 it takes 0.158 instead of 0.74 ms (floats 0.70). The rounding adds an error of 0.5 to 1%,
        beside the 9.7% of rounding weights to 4 bits; the sums are exact, in 1,152 worst cases without VNNI, too.
        """
        self.attributes["accuracy_level"] = 4  # the operator's number for int8

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        operands = (input, self.packed, self.scale, *(constant() for constant in self.zero_points))
        shape = (*input.shape[:-1], self.attributes["N"])
        name = "com.microsoft::MatMulNBits"
        outputs = onnx_op(name, *operands, dtype=torch.float32, shape=shape, version=1, **self.attributes)
        return _add_bias(outputs, self.bias())


def linear_module(source: QuantLinear) -> nn.Module:
    """Return the module that writes a linear layer, for the fastest kernel that takes it."""
    if source.activation == "dynamic" and source.has_integer_kernel:
        return OnnxDynamicLinear(source)
    return OnnxMatMulNBits(source) if fits_matmul_nbits(source) else OnnxLinear(source)


def fits_matmul_nbits(source: QuantLinear) -> bool:
    """Whether a linear layer is written as MatMulNBits: 4 bits in groups, its inputs as they are."""
    size = source.group_size
    is_block_size = size >= 16 and size & (size - 1) == 0  # the operator takes powers of 2
    return is_block_size and source.bits == 4 and source.qscheme != "odd" and source.activation == "none"


class OnnxHalf(nn.Module):
    """A layer in floats, whose 16-bit weight is cast when the file is loaded."""

    def __init__(self, source: HalfLinear | HalfConv2d) -> None:
        super().__init__()
        self.bias = OnnxInitializer(None if source.bias is None else source.bias.data)
        self.weight, self.product = OnnxWiden(source.weight.data), product_function(source)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer's outputs, in the shapes of the source."""
        return self.product(input, self.weight(), self.bias())


class OnnxClustered(nn.Module):
    """A layer in floats, whose weight is looked up in the codebook when the file is loaded."""

    def __init__(self, source: ClusteredLinear | ClusteredConv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.product = codebook_weight(source), source.bias, product_function(source)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer's outputs, in the shapes of the source."""
        return self.product(input, self.weight(), self.bias)


class OnnxAdd(nn.Module):
    """A sum of two dequantized inputs."""

    def __init__(self, source: QuantAdd) -> None:
        super().__init__()
        self.left, self.right = quantize_module(source.left), quantize_module(source.right)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        return torch.add(self.left(left), self.right(right))


class OnnxConcat(nn.Module):
    """A concatenation of dequantized inputs, which ONNX Runtime does in integers where its readers quantize it."""

    def __init__(self, source: QuantConcat) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(quantize_module(each) for each in source.inputs)  # type: ignore[arg-type]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Put tensors `(batch, channels, ...)` one behind the other along the channels."""
        return torch.cat([rounded(values) for rounded, values in zip(self.inputs, inputs, strict=True)], 1)


class OnnxAvgPool2d(nn.Module):
    """The mean of a dequantized image as GlobalAveragePool, which has an integer kernel; other sizes as in torch."""

    def __init__(self, source: QuantAvgPool2d) -> None:
        super().__init__()
        self.input, self.output_size = quantize_module(source.input), source.output_size

    def forward(self, input: Tensor) -> Tensor:
        """Pool `(batch, channels, height, width)` to `(batch, channels, *output_size)`."""
        images = self.input(input)
        if self.output_size not in (1, (1, 1)):
            return F.adaptive_avg_pool2d(images, self.output_size)
        return onnx_op("GlobalAveragePool", images, dtype=torch.float32, shape=(*images.shape[:2], 1, 1))


# Layers that torch's exporter alone would not write in the form that ONNX Runtime fuses, or not as small. A new layer
# class that needs another form than its forward pass joins this table.
EXPORT_MODULES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Quantize: quantize_module,
    QuantInput: OnnxBarrier,
    QuantLinear: linear_module,
    QuantConv2d: OnnxConv2d,
    QuantEmbedding: OnnxEmbedding,
    QuantAdd: OnnxAdd,
    QuantConcat: OnnxConcat,
    QuantAvgPool2d: OnnxAvgPool2d,
    ClusteredLinear: OnnxClustered,
    ClusteredConv2d: OnnxClustered,
    HalfLinear: OnnxHalf,
    HalfConv2d: OnnxHalf,
    BiLSTM: lstm_module,
    Direction: OnnxDirection,
}
