"""Quantized layers: they store integers, and simulate integer arithmetic in floats, so that they run on any device."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.nn.quantized.convolution import conv_arguments, conv_options
from compression.nn.quantized.packing import pack, packed_size, unpack
from compression.nn.quantized.qparams import (
    MAX_PAIR_SUM,
    MAX_ROW_SUM,
    QParams,
    code_range,
    dequantize,
    merge_groups,
    nonzero_scale,
    quantize,
    require_exact_sums,
    split_groups,
)

# Share of a step that is added before a mid-rise quantizer takes the sign. Quantized layers output multiples of a
# step, often exactly zero, and rounding noise would decide the sign: in torch for one side, in ONNX Runtime for the
# other.
TIE_SHIFT = 2.0**-12
DYNAMIC: Literal["dynamic"] = "dynamic"
ActivationScheme = QParams | Literal["dynamic"] | None  # how a layer quantizes its input; None: not at all


class Quantize(nn.Module):
    """Fake-quantizes its input: rounds it to the values of unsigned codes of `bits` bits, in any shape.

    `levels` names the scheme: affine, odd (mid-rise, see `QParams`), or dynamic: affine with 8 bits over the range of
    each input tensor, by the formula of ONNX's DynamicQuantizeLinear.
    """

    scale: Tensor
    zero_point: Tensor

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
        if isinstance(activation, str):
            return cls("dynamic")
        made = cls("odd" if activation.qscheme == "odd" else "affine", activation.bits)
        made.scale.copy_(activation.scale.detach())
        made.zero_point.copy_(activation.zero_point.detach())
        return made.to(activation.scale.device)

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
        """The parameters that `from_scheme` built it from; not defined for a dynamic range."""
        return QParams(self.bits, self.scale, self.zero_point, *code_range(self.bits, signed=False))

    def calc_qparams(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, scalars; those of a dynamic range depend on `values`."""
        if self.qscheme != "dynamic":
            return self.scale, self.zero_point
        low, high = values.amin().clamp(max=0.0), values.amax().clamp(min=0.0)
        scale = nonzero_scale((high - low) / 255)
        return scale, (-low / scale).round().clamp(0, 255)

    def extra_repr(self) -> str:
        """Scheme and bit width."""
        return f"{self.levels}, {self.bits} bits"


class QuantInput(Quantize):
    """Quantizes the input of a float layer, so that the quantized layer before it is fused to an integer kernel."""


class QuantWeightLayer(nn.Module):
    """Base class of layers with an integer weight.

    Stored are `packed` (uint8, the codes at their bit width), `scale` `(rows, groups)` and, for affine schemes,
    `zero_point` in the same shape; `weight` holds the dequantized values in memory alone. All are buffers: nothing
    here trains.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    weight: Tensor

    def __init__(
        self, shape: tuple[int, ...], bits: int, granularity: str, group_size: int, levels: str, bias: int = 0
    ) -> None:
        super().__init__()
        self.bits, self.granularity, self.group_size, self.levels = bits, granularity, group_size, levels
        weight = torch.zeros(shape)
        ones = torch.ones(split_groups(weight, granularity, group_size).shape[:2])
        self.register_buffer("packed", torch.zeros(packed_size(weight.numel(), bits), dtype=torch.uint8))
        self.register_buffer("scale", ones)
        self.register_buffer("zero_point", ones.to(torch.int8) if levels == "affine" else None)
        self.register_buffer("weight", weight, persistent=False)
        self.bias = nn.Parameter(torch.zeros(bias), requires_grad=False) if bias else None

    @property
    def qscheme(self) -> str:
        """symmetric, affine or odd, see `QParams.qscheme`; stored as `levels`."""
        return self.levels

    @property
    def codes(self) -> Tensor:
        """The integer codes, int8 in the shape of the weight."""
        return unpack(self.packed, self.bits, self.weight.numel()).view(self.weight.shape)

    @property
    def zero_points(self) -> Tensor:
        """Zero points of every scheme, float32 `(rows, groups)`."""
        if self.zero_point is not None:
            return self.zero_point.float()
        return torch.full_like(self.scale, -0.5 if self.qscheme == "odd" else 0.0)

    @property
    def code_step(self) -> int:
        """The distance of neighbouring codes in integer kernels: the largest that a byte and `MAX_PAIR_SUM` allow.

        A bias is rounded to multiples of input scale times weight scale. With few bits both are large, and the bias
        would be far off; spreading the codes over the byte divides the weight scale by this factor.
        """
        source = getattr(self, "input", None)
        if not isinstance(source, Quantize) or source.qscheme != "affine" or not self.has_integer_kernel:
            return 1
        odd = self.qscheme == "odd"
        limit = MAX_PAIR_SUM // (2 * source.largest_code)
        largest = (1 << self.bits) - 1 if odd else 1 << self.bits - 1
        return max(1, min(limit, 127 if odd else 128) // largest)

    @property
    def kernel_scale(self) -> Tensor:
        """The weight scale of integer kernels, `(rows, groups)`; `odd` codes are doubled there to make them whole."""
        return self.scale / (self.code_step * (2 if self.qscheme == "odd" else 1))

    @property
    def has_integer_kernel(self) -> bool:
        """Whether an integer kernel can multiply with this weight; otherwise it is cast to floats on loading."""
        return self.granularity != "group" and not (self.qscheme == "odd" and self.bits == 8)

    @torch.no_grad()
    def set_codes(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Self:
        """Set the weight to these codes (shape of the weight), scales and zero points `(rows, groups)`.

        Raises ValueError if integer kernels could not sum them exactly.
        """
        self.packed = pack(codes, self.bits)
        self.scale = scale.detach().to(torch.float32).clone()
        if self.qscheme == "affine":
            self.zero_point = zero_point.to(torch.int8)
        self.weight = self.weight.to(codes.device)
        self.update_weight()
        return self

    def update_weight(self) -> None:
        """Dequantize the codes into `weight`; ValueError as in `set_codes`."""
        codes = split_groups(self.codes.float(), self.granularity, self.group_size)
        values = dequantize(codes, self.scale.unsqueeze(2), self.zero_points.unsqueeze(2))
        self.weight = merge_groups(values, self.weight.shape)
        source = getattr(self, "input", None)
        if isinstance(source, Quantize) and self.has_integer_kernel:
            stored = self.codes.flatten(1).int()
            integers = 2 * stored + 1 if self.qscheme == "odd" else stored
            require_exact_sums(self.code_step * integers, source.largest_code)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.update_weight()

    def extra_repr(self) -> str:
        """Shape, bit width, granularity and scheme of the weight."""
        grouped = f" of {self.group_size}" if self.group_size else ""
        shape = "x".join(map(str, self.weight.shape))
        return f"{shape}, {self.bits} bits per {self.granularity}{grouped}, {self.qscheme}"


def _quantize_into(
    quantized: QuantWeightLayer, layer: nn.Module, weight: QParams, activation: ActivationScheme, codes: Tensor | None
) -> None:
    """Quantize the weight and the bias of the float `layer` into `quantized`.

    `codes` (shape of the weight) replaces rounding to the nearest. With quantized inputs the bias is rounded to the
    32-bit integers that kernels add.
    """
    values, bias = layer.weight.detach(), getattr(layer, "bias", None)  # type: ignore[operator]
    scale = weight.scale.detach().to(torch.float32)
    if isinstance(activation, QParams) and bias is not None and codes is None:
        # With a scale as small as the weights of a weak channel, its bias would not fit into 32 bits.
        largest_step = activation.scale * MAX_ROW_SUM / quantized.code_step
        scale = torch.maximum(scale, _largest_bias(bias.detach(), scale.shape) / largest_step)
    if codes is None:
        groups = split_groups(values, weight.granularity, weight.group_size)
        rounded = quantize(groups, scale.unsqueeze(2), weight.zero_point.unsqueeze(2), weight.low, weight.high)
        codes = merge_groups(rounded, values.shape)
    quantized.to(values.device).set_codes(codes, scale, weight.zero_point)
    if bias is not None:
        step = bias_scale(quantized)
        assert quantized.bias is not None
        quantized.bias.data = bias.detach().clone() if step is None else (bias.detach() / step).round() * step


def bias_scale(layer: QuantWeightLayer) -> Tensor | None:
    """Return the scale of the 32-bit bias in integer kernels, `(outputs,)` or `(1,)`; None if the bias stays float."""
    source = getattr(layer, "input", None)
    if not isinstance(source, Quantize) or source.qscheme != "affine" or not layer.has_integer_kernel:
        return None
    return layer.kernel_scale.flatten() * source.scale


def _largest_bias(bias: Tensor, shape: torch.Size) -> Tensor:
    """Largest magnitude of the biases `(outputs,)` that each scale of `shape` `(1 or outputs, 1)` belongs to."""
    return bias.abs().amax().expand(shape) if shape[0] == 1 else bias.abs().unsqueeze(1).expand(shape)


def _arguments(qparams: QParams, activation: ActivationScheme) -> dict[str, Any]:
    """Return the constructor arguments that follow from the quantization parameters."""
    source = Quantize.from_scheme(activation)
    arguments = {
        "bits": qparams.bits,
        "granularity": qparams.granularity,
        "group_size": qparams.group_size,
        "levels": qparams.qscheme,
    }
    if isinstance(source, Quantize):
        arguments |= {"activation": source.qscheme, "activation_bits": source.bits}
    return arguments


def _input(activation: str, bits: int) -> nn.Module:
    return nn.Identity() if activation == "none" else Quantize(activation, bits)


class QuantLinear(QuantWeightLayer):
    """`nn.Linear` with an integer weight; `activation` is the scheme of its `Quantize` input, or none."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        bits: int = 8,
        granularity: str = "channel",
        group_size: int = 0,
        levels: str = "symmetric",
        activation: str = "none",
        activation_bits: int = 8,
    ) -> None:
        super().__init__(
            (out_features, in_features), bits, granularity, group_size, levels, out_features if bias else 0
        )
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.activation_bits = activation, activation_bits
        self.input = _input(activation, activation_bits)

    @classmethod
    def from_float(
        cls, layer: nn.Linear, weight: QParams, activation: ActivationScheme = None, codes: Tensor | None = None
    ) -> Self:
        """Quantize `layer`; `codes` (shape of the weight) replaces rounding to the nearest."""
        bias = layer.bias is not None
        made = cls(layer.in_features, layer.out_features, bias, **_arguments(weight, activation))
        made.input = Quantize.from_scheme(activation)
        _quantize_into(made, layer, weight, activation, codes)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return F.linear(self.input(inputs), self.weight, self.bias)


class QuantConv2d(QuantWeightLayer):
    """`nn.Conv2d` with an integer weight; `activation` is the scheme of its `Quantize` input, or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        bits: int = 8,
        granularity: str = "channel",
        group_size: int = 0,
        levels: str = "symmetric",
        activation: str = "none",
        activation_bits: int = 8,
    ) -> None:
        shape = (out_channels, in_channels // groups, *kernel_size)
        super().__init__(shape, bits, granularity, group_size, levels, out_channels if bias else 0)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.activation, self.activation_bits = activation, activation_bits
        self.input = _input(activation, activation_bits)

    @classmethod
    def from_float(
        cls, layer: nn.Conv2d, weight: QParams, activation: ActivationScheme = None, codes: Tensor | None = None
    ) -> Self:
        """Quantize `layer`; `codes` (shape of the weight) replaces rounding to the nearest."""
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode!r}: only zeros can be padded in integers")
        made = cls(**conv_arguments(layer), bias=layer.bias is not None, **_arguments(weight, activation))
        made.input = Quantize.from_scheme(activation)
        _quantize_into(made, layer, weight, activation, codes)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(batch, in_channels, height, width)` to feature maps `(batch, out_channels, ...)`."""
        return F.conv2d(self.input(inputs), self.weight, self.bias, **conv_options(self))


class QuantEmbedding(QuantWeightLayer):
    """`nn.Embedding` with an integer table; granularity `channel` gives every row its own scale."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bits: int = 8,
        granularity: str = "channel",
        group_size: int = 0,
        levels: str = "symmetric",
    ) -> None:
        super().__init__((num_embeddings, embedding_dim), bits, granularity, group_size, levels)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    @classmethod
    def from_float(cls, layer: nn.Embedding, weight: QParams, codes: Tensor | None = None) -> Self:
        """Quantize `layer`; `codes` (shape of the table) replaces rounding to the nearest."""
        made = cls(layer.num_embeddings, layer.embedding_dim, **_arguments(weight, None))
        _quantize_into(made, layer, weight, None, codes)
        return made

    def forward(self, indices: Tensor) -> Tensor:
        """Look up `indices` of any shape: `(..., embedding_dim)`."""
        return F.embedding(indices, self.weight)


class QuantAdd(nn.Module):
    """The sum of two inputs of one shape, each quantized with its own parameters, as integer kernels add them."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self.left, self.right = Quantize(bits=bits), Quantize(bits=bits)

    @classmethod
    def from_qparams(cls, left: QParams, right: QParams) -> Self:
        """Build the sum of inputs quantized by `left` and `right`."""
        made = cls(left.bits)
        made.left, made.right = Quantize.from_scheme(left), Quantize.from_scheme(right)  # type: ignore[assignment]
        return made

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        total: Tensor = self.left(left) + self.right(right)
        return total


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
        made.input = Quantize.from_scheme(activation)  # type: ignore[assignment]
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """Pool `(batch, channels, height, width)` to `(batch, channels, *output_size)`."""
        return F.adaptive_avg_pool2d(self.input(inputs), self.output_size)
