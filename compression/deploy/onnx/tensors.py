"""Numbers as ONNX: activations, weights, biases and packed codes, each a module that writes its operators.

Activations become QuantizeLinear (Clip, below 8 bits) DequantizeLinear, weights integer initializers with a
DequantizeLinear. Codes of fewer than 8 bits stay packed in the file at their width, whatever it is: `Unpack` (see
functions.py) is evaluated once, when the file is loaded, and then ONNX Runtime fuses as if the bytes had been there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic, symbolic_multi_out

from compression.deploy.onnx.functions import DOMAIN
from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.quantized.layers import QuantConv2d, Quantize, QuantLinear, QuantWeightLayer
from compression.nn.quantized.packing import pack
from compression.nn.quantized.qparams import code_range, merge_groups, split_groups

OPSET = 20


def op(name: str, *inputs: Tensor, dtype: torch.dtype, shape: Any, version: int = OPSET, **attributes: Any) -> Tensor:
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
        codes = op("QuantizeLinear", values, self.scale, self.zero_point, dtype=torch.uint8, **like)
        if self.narrow:
            codes = op("Clip", codes, self.low, self.high, dtype=torch.uint8, **like)
        return op("DequantizeLinear", codes, self.scale, self.zero_point, dtype=torch.float32, **like)


class OnnxApart(nn.Module):
    """An input on its levels, for a weight in floats: behind a maximum with a number below all of them.

    Right behind integers ONNX Runtime would make integers of that weight by itself, over the whole byte, and their
    sums saturate on CPUs without VNNI. The maximum changes no value, and is what it does not see through.
    """

    below: Tensor

    def __init__(self, source: Quantize) -> None:
        super().__init__()
        self.rounded = OnnxQuantize(source)
        self.register_buffer("below", -(source.zero_point + 1) * source.scale)

    def forward(self, values: Tensor) -> Tensor:
        return torch.maximum(self.rounded(values), self.below)


class OnnxDynamicQuantize(nn.Module):
    """DynamicQuantizeLinear, DequantizeLinear."""

    def forward(self, values: Tensor) -> Tensor:
        codes, scale, zero_point = dynamic(values)
        return op("DequantizeLinear", codes, scale, zero_point, dtype=torch.float32, shape=values.shape)


def dynamic(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of an input by its own range."""
    types, shapes = (torch.uint8, torch.float32, torch.uint8), (values.shape, (), ())
    return symbolic_multi_out("DynamicQuantizeLinear", (values,), dtypes=types, shapes=shapes, version=OPSET)  # type: ignore[return-value]


def quantize(source: Quantize) -> nn.Module:
    if source.qscheme == "dynamic":
        return OnnxDynamicQuantize()
    # QuantizeLinear knows no zero point of a half: odd levels stay the float arithmetic that they are in torch.
    return source if source.qscheme == "odd" else OnnxQuantize(source)


class Unpacked(nn.Module):
    """What codes of `bits` bits stand for, packed in the file: `levels` `(2 ** bits,)`, from the lowest code up."""

    packed: Tensor
    levels: Tensor
    size: Tensor

    def __init__(self, codes: Tensor, bits: int, levels: Tensor) -> None:
        super().__init__()
        self.bits, self.shape = bits, tuple(codes.shape)
        stream = pack(codes, bits)
        self.register_buffer("packed", F.pad(stream, (0, -len(stream) % bits)))
        self.register_buffer("levels", levels)
        self.register_buffer("size", torch.tensor(codes.shape))

    def forward(self) -> Tensor:
        made: dict[str, Any] = {"dtype": self.levels.dtype, "shape": self.shape, "version": 1}
        return op(f"{DOMAIN}::Unpack", self.packed, self.levels, self.size, bits=self.bits, **made)


def every_code(bits: int) -> Tensor:
    """The codes of so many bits, `(2 ** bits,)`, from the lowest up."""
    low, high = code_range(bits, signed=True)
    return torch.arange(low, high + 1)


def integers(codes: Tensor, bits: int, multiple: int = 1, odd: bool = False) -> nn.Module:
    """`multiple` times the codes, int8; where `odd`, times 2 code + 1: the odd numbers that stand for halves."""
    if bits == 8:
        return Bytes(codes)
    levels = every_code(bits)
    return Unpacked(codes, bits, (multiple * (2 * levels + 1 if odd else levels)).to(torch.int8))


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

    Fewer than 8 bits are spread over the byte, see `QuantWeightLayer.code_step`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: QuantWeightLayer, transposed: bool = False) -> None:
        super().__init__()
        odd = source.qscheme == "odd"
        codes = source.codes.t() if transposed else source.codes
        self.codes = integers(codes, source.bits, source.code_step, odd)
        self.axis: dict[str, Any] = {"axis": 1 if transposed else 0} if source.granularity == "channel" else {}
        shape = (-1,) if self.axis else ()
        zero_point = torch.zeros_like(source.scale) if odd else source.zero_points * source.code_step
        self.register_buffer("scale", source.kernel_scale.reshape(shape))
        self.register_buffer("zero_point", zero_point.to(torch.int8).reshape(shape))

    def set_codes(self, codes: nn.Module, multiple: int) -> None:
        """Hold `codes` as they are, of which `multiple` times was held."""
        self.codes, self.scale, self.zero_point = codes, self.scale * multiple, self.zero_point // multiple

    def forward(self) -> Tensor:
        codes = self.codes()
        made: dict[str, Any] = {"dtype": torch.float32, "shape": codes.shape}
        return op("DequantizeLinear", codes, self.scale, self.zero_point, **made, **self.axis)


class OnnxFloatWeight(nn.Module):
    """A weight that no integer kernel takes: integers in the file, made floats once, when it is loaded."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, source: QuantWeightLayer) -> None:
        super().__init__()
        self.shape, self.cut = source.weight.shape, (source.granularity, source.group_size)
        # Packed even at 8 bits: the exporter would work out the floats of a bare initializer and write those.
        levels = every_code(source.bits) + (0.5 if source.qscheme == "odd" else 0.0)
        self.codes = Unpacked(source.codes, source.bits, levels)
        self.register_buffer("scale", source.scale.unsqueeze(2))
        self.register_buffer("zero_point", None if source.zero_point is None else source.zero_point.unsqueeze(2))

    def forward(self) -> Tensor:
        codes = split_groups(self.codes(), *self.cut)
        if self.zero_point is not None:
            codes = codes - widened(self.zero_point)
        return merge_groups(codes * self.scale, self.shape)


def shared_weight(source: ClusteredLayer) -> Unpacked:
    """A weight that is looked up once, when the file is loaded: packed indices and the values they stand for."""
    return Unpacked(source.indices - 2 ** (source.bits - 1), source.bits, source.codebook)


class Widened(nn.Module):
    """A tensor of small numbers, as floats."""

    small: Tensor

    def __init__(self, small: Tensor) -> None:
        super().__init__()
        self.register_buffer("small", small)

    def forward(self) -> Tensor:
        return widened(self.small)


def widened(small: Tensor) -> Tensor:
    """The floats of small numbers, made when the file is loaded."""
    return op(f"{DOMAIN}::Widen", small, dtype=torch.float32, shape=small.shape, version=1)


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
        self.register_buffer("weight_scale", source.kernel_scale.reshape(-1 if source.granularity == "channel" else ()))

    def forward(self) -> Tensor:
        made: dict[str, Any] = {"dtype": torch.float32, "shape": self.codes.shape, "version": 1}
        return op(f"{DOMAIN}::DequantizeBias", self.codes, self.input_scale, self.weight_scale, **made)


class Plain(nn.Module):
    """A tensor or None, called like the others."""

    value: Tensor | None

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor | None:
        return self.value
