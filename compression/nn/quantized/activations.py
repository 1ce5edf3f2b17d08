"""Quantized activations: modules that fake-quantize their inputs, as integer kernels do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.nn.quantized.qparams import QParams, code_range, dequantize, nonzero_scale, quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

# Share of a step that is added before a mid-rise quantizer takes the sign. Quantized layers output multiples of a
# step, often exactly zero, and rounding noise would decide the sign: in torch for one side, in ONNX Runtime for the
# other.
TIE_SHIFT = 2.0**-12
DYNAMIC: Literal["dynamic"] = "dynamic"
ActivationScheme = QParams | Literal["dynamic"] | None  # how a layer quantizes its input; None: not at all


class Quantize(nn.Module):
    """Fake-quantizes its input: rounds it to the values of unsigned codes of `bits` bits, in any shape.

    `levels` names the scheme: affine, odd (mid-rise, see `QParams`), or dynamic: affine with 8 bits over the range of
    each input tensor, by the formula of ONNX's DynamicQuantizeLinear. Raises ValueError if dynamic has not 8 bits.
    """

    scale: Tensor  # scalar
    zero_point: Tensor  # scalar, float32

    def __init__(self, levels: str = "affine", bits: int = 8) -> None:
        super().__init__()
        if levels == "dynamic" and bits != 8:
            raise ValueError(f"a dynamic range has 8 bits, not {bits}")
        self.levels, self.bits = levels, bits
        if levels != "dynamic":
            self.register_buffer("scale", torch.ones(()))
            self.register_buffer("zero_point", torch.zeros(()))

    @classmethod
    def from_scheme(cls, activation: ActivationScheme) -> Quantize | nn.Identity:
        """Build the module that quantizes an input by `activation`; an identity for None."""
        if activation is None:
            return nn.Identity()
        return cls(DYNAMIC) if isinstance(activation, str) else cls.from_qparams(activation)

    @classmethod
    def from_qparams(cls, qparams: QParams) -> Self:
        """Build the module that quantizes with fixed `qparams`, on their device."""
        made = cls("odd" if qparams.qscheme == "odd" else "affine", qparams.bits)
        made.scale.copy_(qparams.scale.detach())
        made.zero_point.copy_(qparams.zero_point.detach())
        return made.to(qparams.scale.device)

    @property
    def qscheme(self) -> str:
        """affine, odd or dynamic; stored as `levels`."""
        return self.levels

    @property
    def largest_code(self) -> int:
        """The largest byte that an integer kernel reads for an activation; those of `odd` lie around 128."""
        return (1 << self.bits) - 1 + (128 if self.qscheme == "odd" else 0)

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` to the nearest representable ones, in their shape."""
        scale, zero_point = self.calc_qparams(values)
        if self.qscheme == "odd":
            values = values + TIE_SHIFT * scale
        return dequantize(quantize(values, scale, zero_point, *code_range(self.bits, signed=False)), scale, zero_point)

    @property
    def qparams(self) -> QParams:
        """The fixed quantization parameters; AttributeError for a dynamic range, which has none."""
        return QParams(self.bits, self.scale, self.zero_point, *code_range(self.bits, signed=False))

    def calc_qparams(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, scalars; those of a dynamic range depend on `values`."""
        if self.qscheme != "dynamic":
            return self.scale, self.zero_point
        # DynamicQuantizeLinear takes 0 into the range, so that the zero point is one of the codes 0..255.
        low, high = values.amin().clamp(max=0.0), values.amax().clamp(min=0.0)
        scale = nonzero_scale((high - low) / 255)
        return scale, (-low / scale).round().clamp(0, 255)

    def extra_repr(self) -> str:
        """Scheme and bit width."""
        return f"{self.levels}, {self.bits} bits"


class QuantInput(Quantize):
    """Quantizes the input of a float layer, so that the quantized layer before it is fused to an integer kernel."""


class QuantAdd(nn.Module):
    """The sum of two inputs of one shape, each quantized with its own parameters, as integer kernels add them.

    The right one has `bits` as well unless `right_bits` says otherwise.
    """

    def __init__(self, bits: int = 8, right_bits: int | None = None) -> None:
        super().__init__()
        self.bits, self.right_bits = bits, right_bits
        self.left, self.right = Quantize(bits=bits), Quantize(bits=bits if right_bits is None else right_bits)

    @classmethod
    def from_qparams(cls, left: QParams, right: QParams) -> Self:
        """Build the sum of inputs quantized by `left` and `right`."""
        made = cls(left.bits, None if right.bits == left.bits else right.bits)
        made.left, made.right = Quantize.from_qparams(left), Quantize.from_qparams(right)
        return made

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        total: Tensor = self.left(left) + self.right(right)
        return total


class QuantConcat(nn.Module):
    """A concatenation along the channels of inputs that are each quantized with their own parameters.

    `bits` has those of each input.
    """

    def __init__(self, bits: Sequence[int]) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.inputs = nn.ModuleList(Quantize(bits=each) for each in bits)

    @classmethod
    def from_qparams(cls, inputs: Sequence[QParams]) -> Self:
        """Build the concatenation of inputs quantized by `inputs`."""
        made = cls([qparams.bits for qparams in inputs])
        made.inputs = nn.ModuleList(map(Quantize.from_qparams, inputs))
        return made

    def forward(self, *inputs: Tensor) -> Tensor:
        """Put tensors `(batch, channels, ...)` of one shape, but for their channels, one behind the other."""
        return torch.cat([rounded(values) for rounded, values in zip(self.inputs, inputs, strict=True)], 1)


class QuantAvgPool2d(nn.Module):
    """`nn.AdaptiveAvgPool2d` on a quantized input, so that a sum before it and the mean run in integers."""

    def __init__(self, output_size: int | tuple[int, int], bits: int = 8) -> None:
        super().__init__()
        self.output_size, self.bits = output_size, bits
        self.input = Quantize(bits=bits)

    @classmethod
    def from_float(cls, layer: nn.AdaptiveAvgPool2d, activation: QParams) -> Self:
        """Build the pooling of `layer` on an input quantized by `activation`."""
        made = cls(layer.output_size, activation.bits)  # type: ignore[arg-type]
        made.input = Quantize.from_qparams(activation)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Pool `(batch, channels, height, width)` to `(batch, channels, *output_size)`."""
        return F.adaptive_avg_pool2d(self.input(input), self.output_size)
