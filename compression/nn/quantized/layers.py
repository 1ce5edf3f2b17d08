"""Layers that hold integers. Their forward computes in torch what the integers mean, so it needs no special device."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.nn.quantized.convolution import conv_arguments, conv_options
from compression.nn.quantized.qparams import MAX_PAIR_SUM, MAX_ROW_SUM, QParams, code_range, dequantize, merge_groups, quantize, require_exact_sums, split_groups, nonzero_scale
from compression.nn.quantized.packing import pack, packed_size, unpack

# Of a step, added before a sign is taken. Layers of integers give multiples of a step, zero among them, and rounding
# noise would say on which side of zero it lies: in torch on one, in ONNX Runtime on the other.
TIE_SHIFT = 2.0**-12
DYNAMIC: Literal["dynamic"] = "dynamic"
ActivationScheme = QParams | Literal["dynamic"] | None  # what a layer does to its input; None leaves it alone


class Quantize(nn.Module):
    """Rounds its input to the levels of unsigned codes of `bits` bits.

    `levels` is affine, odd (no level at zero; see `Numbers`), or dynamic: an affine range of 8 bits taken from each
    input as a whole, by the formula of ONNX's DynamicQuantizeLinear.
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
        """The module that does to an input what `activation` says."""
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
        """The largest byte that stands for an activation in integer kernels; odd levels lie around 128."""
        return 2**self.bits - 1 + (128 if self.qscheme == "odd" else 0)

    def forward(self, values: Tensor) -> Tensor:
        scale, zero_point = self.calc_qparams(values)
        if self.qscheme == "odd":
            values = values + TIE_SHIFT * scale
        return dequantize(quantize(values, scale, zero_point, *code_range(self.bits, signed=False)), scale, zero_point)

    @property
    def qparams(self) -> QParams:
        """What `of` made it from; there is no such thing for a dynamic range."""
        return QParams(self.bits, self.scale, self.zero_point, *code_range(self.bits, signed=False))

    def calc_qparams(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, scalars."""
        if self.qscheme != "dynamic":
            return self.scale, self.zero_point
        low, high = values.amin().clamp(max=0.0), values.amax().clamp(min=0.0)
        scale = nonzero_scale((high - low) / 255)
        return scale, (-low / scale).round().clamp(0, 255)

    def extra_repr(self) -> str:
        return f"{self.levels}, {self.bits} bits"


class QuantInput(Quantize):
    """What goes into a layer that stays in floats, so that the layer of integers before it gets its kernel."""


class QuantWeightLayer(nn.Module):
    """What layers with an integer weight share.

    On disk a weight is `packed` (uint8, the codes at their bit width) with its `scale` `(rows, groups)` and, where
    they are not all zero, its zero points; in memory `weight` holds the values they stand for. Buffers, all of them:
    nothing here trains.
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
        numbers = torch.ones(split_groups(weight, granularity, group_size).shape[:2])
        self.register_buffer("packed", torch.zeros(packed_size(weight.numel(), bits), dtype=torch.uint8))
        self.register_buffer("scale", numbers)
        self.register_buffer("zero_point", numbers.to(torch.int8) if levels == "affine" else None)
        self.register_buffer("weight", weight, persistent=False)
        self.bias = nn.Parameter(torch.zeros(bias), requires_grad=False) if bias else None

    @property
    def qscheme(self) -> str:
        """symmetric, affine or odd, see `QParams.qscheme`; stored as `levels`."""
        return self.levels

    @property
    def codes(self) -> Tensor:
        """The integers, int8, in the shape of the weight."""
        return unpack(self.packed, self.bits, self.weight.numel()).view(self.weight.shape)

    @property
    def zero_points(self) -> Tensor:
        """`(rows, groups)`, float32."""
        if self.zero_point is not None:
            return self.zero_point.float()
        return torch.full_like(self.scale, -0.5 if self.qscheme == "odd" else 0.0)

    @property
    def code_step(self) -> int:
        """What integer kernels are given codes times: as much as a byte holds, and a pair of products.

        Few bits beside few bits have so large a product of their scales that a bias in steps of it would be far off.
        """
        source = getattr(self, "input", None)
        if not isinstance(source, Quantize) or source.qscheme != "affine" or not self.has_integer_kernel:
            return 1
        odd = self.qscheme == "odd"
        limit, largest = MAX_PAIR_SUM // (2 * source.largest_code), 2**self.bits - 1 if odd else 2 ** (self.bits - 1)
        return max(1, min(limit, 127 if odd else 128) // largest)

    @property
    def kernel_scale(self) -> Tensor:
        """What 1 stands for in integer kernels, `(rows, groups)`: halves are doubled for them."""
        return self.scale / (self.code_step * (2 if self.qscheme == "odd" else 1))

    @property
    def has_integer_kernel(self) -> bool:
        """Whether integer kernels can multiply with this weight; the others turn it into floats when loaded."""
        return self.granularity != "group" and not (self.qscheme == "odd" and self.bits == 8)

    @torch.no_grad()
    def set_codes(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Self:
        """Take these integers for the weight; a ValueError where integer kernels would not add them up exactly."""
        self.packed = pack(codes, self.bits)
        self.scale = scale.detach().to(torch.float32).clone()
        if self.qscheme == "affine":
            self.zero_point = zero_point.to(torch.int8)
        self.weight = self.weight.to(codes.device)
        self.update_weight()
        return self

    def update_weight(self) -> None:
        """Compute `weight` from the integers."""
        codes = split_groups(self.codes.float(), self.granularity, self.group_size)
        values = dequantize(codes, self.scale.unsqueeze(2), self.zero_points.unsqueeze(2))
        self.weight = merge_groups(values, self.weight.shape)
        source = getattr(self, "input", None)
        if isinstance(source, Quantize) and self.has_integer_kernel:
            stored = self.codes.flatten(1).int()
            whole = 2 * stored + 1 if self.qscheme == "odd" else stored
            require_exact_sums(self.code_step * whole, source.largest_code)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.update_weight()

    def extra_repr(self) -> str:
        grouped = f" of {self.group_size}" if self.group_size else ""
        shape = "x".join(map(str, self.weight.shape))
        return f"{shape}, {self.bits} bits per {self.granularity}{grouped}, {self.levels}"


def _hold(made: QuantWeightLayer, layer: nn.Module, weight: QParams, activation: ActivationScheme, codes: Tensor | None) -> None:
    """Give `made` the weight and the bias of the float `layer`, in these numbers.

    `codes` (shape of the weight) replaces rounding to the nearest. A bias beside quantized inputs is rounded to
    what its 32-bit integer will hold.
    """
    values, bias = layer.weight.detach(), getattr(layer, "bias", None)  # type: ignore[union-attr, operator]
    scale = weight.scale.detach().to(torch.float32)
    if isinstance(activation, QParams) and bias is not None and codes is None:
        # A channel of tiny weights would need a larger integer for its bias than 32 bits.
        most = activation.scale * MAX_ROW_SUM / made.code_step
        scale = torch.maximum(scale, _largest(bias.detach(), scale.shape) / most)
    if codes is None:
        groups = split_groups(values, weight.granularity, weight.group_size)
        found = quantize(groups, scale.unsqueeze(2), weight.zero_point.unsqueeze(2), weight.low, weight.high)
        codes = merge_groups(found, values.shape)
    made.to(values.device).set_codes(codes, scale, weight.zero_point)
    if bias is not None:
        step = bias_step(made)
        assert made.bias is not None
        made.bias.data = bias.detach().clone() if step is None else (bias.detach() / step).round() * step


def bias_step(layer: QuantWeightLayer) -> Tensor | None:
    """What 1 stands for in the 32-bit bias of integer kernels, `(outputs,)` or `(1,)`; None where it stays a float."""
    source = getattr(layer, "input", None)
    if not isinstance(source, Quantize) or source.qscheme != "affine" or not layer.has_integer_kernel:
        return None
    return layer.kernel_scale.flatten() * source.scale


def _largest(bias: Tensor, shape: torch.Size) -> Tensor:
    return bias.abs().amax().expand(shape) if shape[0] == 1 else bias.abs().unsqueeze(1).expand(shape)


def _arguments(numbers: QParams, activation: ActivationScheme) -> dict[str, Any]:
    """The constructor's arguments that follow from the numbers."""
    source = Quantize.from_scheme(activation)
    held = {
        "bits": numbers.bits,
        "granularity": numbers.granularity,
        "group_size": numbers.group_size,
        "levels": numbers.qscheme,
    }
    if isinstance(source, Quantize):
        held |= {"activation": source.qscheme, "activation_bits": source.bits}
    return held


def _input(activation: str, bits: int) -> nn.Module:
    return nn.Identity() if activation == "none" else Quantize(activation, bits)


class QuantLinear(QuantWeightLayer):
    """`nn.Linear` with an integer weight; `activation` is what `Quantize` does to its input, or none."""

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
        """`layer` in the chosen numbers; `codes` (shape of the weight) where they are not the nearest ones."""
        bias = layer.bias is not None
        made = cls(layer.in_features, layer.out_features, bias, **_arguments(weight, activation))
        made.input = Quantize.from_scheme(activation)
        _hold(made, layer, weight, activation, codes)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(self.input(inputs), self.weight, self.bias)


class QuantConv2d(QuantWeightLayer):
    """`nn.Conv2d` with an integer weight; `activation` is what `Quantize` does to its input, or none."""

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
        """`layer` in the chosen numbers; `codes` (shape of the weight) where they are not the nearest ones."""
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode!r}: only zeros can be padded in integers")
        made = cls(**conv_arguments(layer), bias=layer.bias is not None, **_arguments(weight, activation))
        made.input = Quantize.from_scheme(activation)
        _hold(made, layer, weight, activation, codes)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        return F.conv2d(self.input(inputs), self.weight, self.bias, **conv_options(self))


class QuantEmbedding(QuantWeightLayer):
    """`nn.Embedding` with an integer table: `channel` gives every row its own scale."""

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
        """`layer` in the chosen numbers; `codes` (shape of the table) where they are not the nearest ones."""
        made = cls(layer.num_embeddings, layer.embedding_dim, **_arguments(weight, None))
        _hold(made, layer, weight, None, codes)
        return made

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight)


class QuantAdd(nn.Module):
    """The sum of two inputs, each rounded to its own levels: what integer kernels add."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self.left, self.right = Quantize(bits=bits), Quantize(bits=bits)

    @classmethod
    def from_qparams(cls, left: QParams, right: QParams) -> Self:
        made = cls(left.bits)
        made.left, made.right = Quantize.from_scheme(left), Quantize.from_scheme(right)  # type: ignore[assignment]
        return made

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


class QuantAvgPool2d(nn.Module):
    """`nn.AdaptiveAvgPool2d` on a rounded input: the sum before it can stay in integers, and so can the mean."""

    def __init__(self, output_size: int | tuple[int, int], bits: int = 8) -> None:
        super().__init__()
        self.output_size, self.bits = output_size, bits
        self.input = Quantize(bits=bits)

    @classmethod
    def from_float(cls, layer: nn.AdaptiveAvgPool2d, activation: QParams) -> Self:
        """`layer` on an input in the chosen numbers."""
        made = cls(layer.output_size, activation.bits)  # type: ignore[arg-type]
        made.input = Quantize.from_scheme(activation)  # type: ignore[assignment]
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.input(inputs), self.output_size)
