"""Modules that write quantized activations, weights and biases as ONNX operators.

Activations become QuantizeLinear (with Clip, below 8 bits) and DequantizeLinear, weights integer initializers with a
DequantizeLinear, which ONNX Runtime fuses into integer kernels. Codes of fewer than 8 bits are stored packed at their
width; the function `Unpack` (see functions.py) restores them once, when the file is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic, symbolic_multi_out

from compression.deploy.onnx.functions import DOMAIN
from compression.nn.quantized.activations import Quantize
from compression.nn.quantized.packing import pack
from compression.nn.quantized.qparams import code_range, merge_groups, split_groups

if TYPE_CHECKING:
    from compression.nn.quantized.clustered import ClusteredLayer
    from compression.nn.quantized.layers import QuantConv2d, QuantLinear, QuantWeightLayer

OPSET = 20  # the first with Gelu as an operator; Unpack's bitwise operators came with 18


def onnx_op(
    name: str, *inputs: Tensor | None, dtype: torch.dtype, shape: Any, version: int = OPSET, **attributes: Any
) -> Tensor:
    """Write one ONNX operator into the exported graph; `shape` may hold dynamic dimensions.

    `name` is `Operator` of the standard domain or `domain::Operator`, `version` the opset of that domain.
    """
    return symbolic(name, inputs, attrs=attributes or None, dtype=dtype, shape=shape, version=version)


class OnnxQuantize(nn.Module):
    """QuantizeLinear, Clip if the codes do not fill a byte, DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, source: Quantize) -> None:
        super().__init__()
        self.is_clipped = source.bits < 8
        self.register_buffer("scale", source.scale)
        self.register_buffer("zero_point", source.zero_point.to(torch.uint8))
        self.register_buffer("low", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("high", torch.tensor(2**source.bits - 1, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantize `values` of any shape."""
        codes = onnx_op("QuantizeLinear", values, self.scale, self.zero_point, dtype=torch.uint8, shape=values.shape)
        if self.is_clipped:
            codes = onnx_op("Clip", codes, self.low, self.high, dtype=torch.uint8, shape=values.shape)
        dequantized = (codes, self.scale, self.zero_point)
        return onnx_op("DequantizeLinear", *dequantized, dtype=torch.float32, shape=values.shape)


class OnnxBarrier(nn.Module):
    """Fake-quantizes the input of a layer with a float weight, and keeps ONNX Runtime from quantizing that weight.

    Behind a DequantizeLinear ONNX Runtime quantizes float weights by itself, over the whole byte, and their sums
    saturate on CPUs without VNNI. The barrier is a maximum with a number below all values: it changes none of them, and
    ONNX Runtime fuses nothing across it.
    """

    below: Tensor

    def __init__(self, source: Quantize) -> None:
        super().__init__()
        self.rounded = OnnxQuantize(source)
        # One step below the value of code 0, the lowest.
        self.register_buffer("below", -(source.zero_point + 1) * source.scale)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantize `values` of any shape."""
        return torch.maximum(self.rounded(values), self.below)


class OnnxDynamicQuantize(nn.Module):
    """DynamicQuantizeLinear, DequantizeLinear."""

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantize `values` of any shape over their own range."""
        codes, scale, zero_point = dynamic_quantize(values)
        return onnx_op("DequantizeLinear", codes, scale, zero_point, dtype=torch.float32, shape=values.shape)


def dynamic_quantize(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize over the range of `values`: codes (uint8, in their shape), scale and zero point (scalars)."""
    types, shapes = (torch.uint8, torch.float32, torch.uint8), (values.shape, (), ())
    return symbolic_multi_out("DynamicQuantizeLinear", (values,), dtypes=types, shapes=shapes, version=OPSET)  # type: ignore[return-value]


def quantize_module(source: Quantize) -> nn.Module:
    """Return the module that writes `source`."""
    if source.qscheme == "dynamic":
        return OnnxDynamicQuantize()
    # QuantizeLinear takes no zero point of a half: odd schemes are exported as the float arithmetic they are in torch.
    return source if source.qscheme == "odd" else OnnxQuantize(source)


class OnnxUnpack(nn.Module):
    """Looks packed codes of `bits` bits up in `levels` `(2**bits,)`, which begins with that of the lowest code."""

    packed: Tensor
    levels: Tensor
    size: Tensor

    def __init__(self, codes: Tensor, bits: int, levels: Tensor) -> None:
        super().__init__()
        self.bits, self.shape = bits, tuple(codes.shape)
        stream = pack(codes, bits)
        self.register_buffer("packed", F.pad(stream, (0, -len(stream) % bits)))  # rows of `bits` bytes, as Unpack reads
        self.register_buffer("levels", levels)
        self.register_buffer("size", torch.tensor(codes.shape))

    def forward(self) -> Tensor:
        """Return the levels, in the shape of the codes and the dtype of `levels`."""
        operands = (self.packed, self.levels, self.size)
        return onnx_op(
            f"{DOMAIN}::Unpack", *operands, dtype=self.levels.dtype, shape=self.shape, version=1, bits=self.bits
        )


class OnnxInt8(nn.Module):
    """Codes of 8 bits: an int8 initializer."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())

    def forward(self) -> Tensor:
        """Return the codes, int8."""
        return self.codes


def all_codes(bits: int) -> Tensor:
    """Return the signed codes of `bits` bits, `(2**bits,)`, from the lowest to the highest."""
    low, high = code_range(bits, signed=True)
    return torch.arange(low, high + 1)


def codes_module(codes: Tensor, bits: int, multiple: int = 1, odd: bool = False) -> nn.Module:
    """Store signed codes of any shape; its output is int8, `multiple` times the codes.

    Where `odd`, it is `multiple` times 2 code + 1, since the level of a code is (code + 1/2) times the scale. Codes of
    8 bits fill the byte: they take neither.
    """
    if bits == 8:
        return OnnxInt8(codes)
    levels = all_codes(bits)
    return OnnxUnpack(codes, bits, (multiple * (2 * levels + 1 if odd else levels)).to(torch.int8))


class OnnxWeight(nn.Module):
    """A weight for integer kernels: an integer initializer and its DequantizeLinear.

    Codes of fewer than 8 bits are multiplied by `QuantWeightLayer.code_step`, those of odd schemes doubled as well.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: QuantWeightLayer, transposed: bool = False) -> None:
        super().__init__()
        odd = source.qscheme == "odd"
        codes = source.codes.t() if transposed else source.codes
        self.codes = codes_module(codes, source.bits, source.code_step, odd)
        self.axis: dict[str, int] = {"axis": 1 if transposed else 0} if source.granularity == "channel" else {}
        shape = (-1,) if self.axis else ()
        zero_point = torch.zeros_like(source.scale) if odd else source.zero_points * source.code_step
        self.register_buffer("scale", source.kernel_scale.reshape(shape))
        self.register_buffer("zero_point", zero_point.to(torch.int8).reshape(shape))

    def set_codes(self, codes: nn.Module, multiple: int) -> None:
        """Replace the codes by `codes`, of which they were `multiple` times, and adapt scale and zero point."""
        # value = scale * (code - zero_point) stays: the division is exact, for the zero point was multiplied as well.
        self.codes, self.scale, self.zero_point = codes, self.scale * multiple, self.zero_point // multiple

    def forward(self) -> Tensor:
        """Return the weight, float32."""
        codes = self.codes()
        operands = (codes, self.scale, self.zero_point)
        return onnx_op("DequantizeLinear", *operands, dtype=torch.float32, shape=codes.shape, **self.axis)


class OnnxFloatWeight(nn.Module):
    """A weight that no integer kernel takes: stored as integers, dequantized once, when the file is loaded."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, source: QuantWeightLayer) -> None:
        super().__init__()
        self.shape, self.grouping = source.weight.shape, (source.granularity, source.group_size)
        # Packed even at 8 bits: the exporter would dequantize a bare initializer and write the floats.
        levels = all_codes(source.bits) + (0.5 if source.qscheme == "odd" else 0.0)
        self.codes = OnnxUnpack(source.codes, source.bits, levels)
        self.register_buffer("scale", source.scale.unsqueeze(2))
        self.register_buffer("zero_point", None if source.zero_point is None else source.zero_point.unsqueeze(2))

    def forward(self) -> Tensor:
        """Return the weight, float32."""
        codes = split_groups(self.codes(), *self.grouping)
        if self.zero_point is not None:
            # By a function, or the exporter would evaluate the cast and write floats.
            codes = codes - widen(self.zero_point)
        return merge_groups(codes * self.scale, self.shape)


def codebook_weight(source: ClusteredLayer) -> OnnxUnpack:
    """Store a clustered weight as packed indices and its codebook; the look-up happens when the file is loaded."""
    return OnnxUnpack(source.indices - 2 ** (source.bits - 1), source.bits, source.codebook)


class OnnxWiden(nn.Module):
    """A tensor stored with fewer bits than float32, cast when the file is loaded."""

    small: Tensor

    def __init__(self, small: Tensor) -> None:
        super().__init__()
        self.register_buffer("small", small)

    def forward(self) -> Tensor:
        """Return the tensor, float32."""
        return widen(self.small)


def widen(small: Tensor) -> Tensor:
    """Cast a constant of any shape to float32 when the file is loaded."""
    return onnx_op(f"{DOMAIN}::Widen", small, dtype=torch.float32, shape=small.shape, version=1)


class OnnxBias(nn.Module):
    """A bias `(outputs,)` as 32-bit integers, whose scale is the input's times the weight's."""

    codes: Tensor
    input_scale: Tensor
    weight_scale: Tensor

    def __init__(self, source: QuantLinear | QuantConv2d, scale: Tensor) -> None:
        super().__init__()
        assert source.bias is not None
        assert isinstance(source.input, Quantize)
        self.register_buffer("codes", (source.bias.data / scale).round().to(torch.int32))
        self.register_buffer("input_scale", source.input.scale)
        self.register_buffer("weight_scale", source.kernel_scale.reshape(-1 if source.granularity == "channel" else ()))

    def forward(self) -> Tensor:
        """Return the bias, float32."""
        operands = (self.codes, self.input_scale, self.weight_scale)
        return onnx_op(f"{DOMAIN}::DequantizeBias", *operands, dtype=torch.float32, shape=self.codes.shape, version=1)


class OnnxInitializer(nn.Module):
    """A float tensor, or None, with the interface of the other weights and biases."""

    value: Tensor | None

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor | None:
        """Return the tensor."""
        return self.value
