"""Layers with integer weights, which simulate integer arithmetic in floats, so that they run on any device."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from compression.nn.quantized.activations import ActivationScheme, Quantize
from compression.nn.quantized.low_bit import (
    FloatLayer,
    LowBitConv2d,
    LowBitEmbedding,
    LowBitLayer,
    LowBitLinear,
    frozen_bias,
)
from compression.nn.quantized.packing import pack, packed_size, unpack
from compression.nn.quantized.qparams import (
    MAX_PAIR_SUM,
    MAX_ROW_SUM,
    QParams,
    dequantize,
    merge_groups,
    quantize,
    require_exact_sums,
    split_groups,
)


class QuantWeightLayer(LowBitLayer):
    """Base class of layers with an integer weight.

    Stored are `packed` (uint8, the codes at their bit width), `scale` `(rows, groups)` and, for affine schemes,
    `zero_point` in the same shape; `weight` holds the dequantized values in memory alone. All are buffers: nothing
    here trains. Linear layers and convolutions quantize their input with the module `input`, or leave it in floats.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    input: nn.Module

    def __init__(
        self, shape: tuple[int, ...], bias_size: int, bits: int, granularity: str, group_size: int, levels: str
    ) -> None:
        super().__init__()
        self.bits, self.granularity, self.group_size, self.levels = bits, granularity, group_size, levels
        weight = torch.zeros(shape)
        ones = torch.ones(split_groups(weight, granularity, group_size).shape[:2])
        self.register_buffer("packed", torch.zeros(packed_size(weight.numel(), bits), dtype=torch.uint8))
        self.register_buffer("scale", ones)
        # An affine zero point is one of the codes (calc_qparams), so that a byte holds it.
        self.register_buffer("zero_point", ones.to(torch.int8) if levels == "affine" else None)
        self.register_buffer("weight", weight, persistent=False)
        self.bias = frozen_bias(bias_size)

    @classmethod
    def from_float(
        cls, layer: FloatLayer, weight: QParams, activation: ActivationScheme = None, codes: Tensor | None = None
    ) -> Self:
        """Quantize `layer`; `codes` (shape of the weight) replaces rounding to the nearest.

        With an affine input the bias is rounded to the 32-bit integers that kernels add, and the scale of a channel
        whose bias would not fit into them is raised. Raises ValueError as `set_codes` does.
        """
        made = cls.shaped_like(layer, **_scheme_arguments(weight, activation))
        if activation is not None:
            made.input = Quantize.from_scheme(activation)
        values, bias = layer.weight.detach(), getattr(layer, "bias", None)
        made.to(values.device)
        scale = weight.scale.detach().to(torch.float32)
        if codes is None:
            # A channel of tiny weights has a tiny scale, of which its bias could be more multiples than 32 bits count.
            if isinstance(activation, QParams) and bias is not None:
                scale = torch.maximum(scale, _min_scale(bias.detach(), scale.shape, activation, made.code_step))
            codes = _round_weight(values, scale, weight)
        made.set_codes(codes, scale, weight.zero_point)
        if made.bias is not None and bias is not None:
            # Rounded here already, so that torch adds what the integer kernel adds.
            step = made.bias_scale
            made.bias.data = bias.detach().clone() if step is None else (bias.detach() / step).round() * step
        return made

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
    def has_integer_kernel(self) -> bool:
        """Whether an integer kernel can multiply with this weight; otherwise it is cast to floats on loading."""
        # Kernels take a scale per tensor or channel. Odd levels are doubled to whole numbers, ±255 at 8 bits: nine
        # bits.
        return self.granularity != "group" and not (self.qscheme == "odd" and self.bits == 8)

    @property
    def input_quantizer(self) -> Quantize | None:
        """The module that quantizes the input; None if it stays in floats, and for embeddings."""
        source = getattr(self, "input", None)
        return source if isinstance(source, Quantize) else None

    @property
    def kernel_input(self) -> Quantize | None:
        """The input quantizer if its fixed codes and this weight's meet in an integer kernel; None otherwise."""
        source = self.input_quantizer
        return source if source is not None and source.qscheme == "affine" and self.has_integer_kernel else None

    @property
    def code_step(self) -> int:
        """The distance of neighbouring codes in integer kernels: the largest that a byte and `MAX_PAIR_SUM` allow.

        A bias is rounded to multiples of input scale times weight scale. With few bits both are large, and the bias
        would be far off; spreading the codes over the byte divides the weight scale by this factor.
        """
        if self.kernel_input is None:
            return 1
        # Codes of 2 bits are spread by 64: undivided, biases cost W2A2 up to 8 points of what training had reached. Odd
        # codes reach as far up as down, to 127; of the others -128 is the farthest, and above zero there is one less.
        odd = self.qscheme == "odd"
        limit = MAX_PAIR_SUM // (2 * self.kernel_input.largest_code)
        largest = (1 << self.bits) - 1 if odd else 1 << self.bits - 1
        return max(1, min(limit, 127 if odd else 128) // largest)

    @property
    def kernel_scale(self) -> Tensor:
        """The weight scale of integer kernels, `(rows, groups)`; `odd` codes are doubled there to make them whole."""
        return self.scale / (self.code_step * (2 if self.qscheme == "odd" else 1))

    @property
    def bias_scale(self) -> Tensor | None:
        """The scale of the 32-bit bias in integer kernels, `(outputs,)` or `(1,)`; None if the bias stays float."""
        return None if self.kernel_input is None else self.kernel_scale.flatten() * self.kernel_input.scale

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
        # Also where a file is read, and for dynamic inputs, whose kernels multiply integers too: what could saturate is
        # refused.
        if self.input_quantizer is not None and self.has_integer_kernel:
            stored = self.codes.flatten(1).int()
            integers = 2 * stored + 1 if self.qscheme == "odd" else stored
            require_exact_sums(self.code_step * integers, self.input_quantizer.largest_code)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if f"{prefix}packed" in state_dict:  # a file holds a layer of two names under one of them
            self.update_weight()

    def extra_repr(self) -> str:
        """Shape, bit width, granularity and scheme of the weight."""
        grouped = f" of {self.group_size}" if self.group_size else ""
        shape = "x".join(map(str, self.weight.shape))
        return f"{shape}, {self.bits} bits per {self.granularity}{grouped}, {self.qscheme}"


def _scheme_arguments(weight: QParams, activation: ActivationScheme) -> dict[str, Any]:
    """Return the constructor arguments that follow from the quantization parameters."""
    arguments: dict[str, Any] = {
        "bits": weight.bits,
        "granularity": weight.granularity,
        "group_size": weight.group_size,
        "levels": weight.qscheme,
    }
    source = Quantize.from_scheme(activation)
    if isinstance(source, Quantize):
        arguments |= {"activation": source.qscheme, "activation_bits": source.bits}
    return arguments


def _min_scale(bias: Tensor, shape: torch.Size, activation: QParams, code_step: int) -> Tensor:
    """Return the least weight scales, of `shape` `(1 or outputs, 1)`, with which the bias `(outputs,)` fits 32 bits."""
    largest = bias.abs().amax().expand(shape) if shape[0] == 1 else bias.abs().unsqueeze(1).expand(shape)
    # From |bias| <= MAX_ROW_SUM * bias_scale, where bias_scale is input scale * weight scale / code_step.
    return largest / (activation.scale * MAX_ROW_SUM / code_step)


def _round_weight(values: Tensor, scale: Tensor, qparams: QParams) -> Tensor:
    """Round a weight to the nearest codes of `qparams`, in its shape, with `scale` in place of theirs."""
    groups = split_groups(values, qparams.granularity, qparams.group_size)
    codes = quantize(groups, scale.unsqueeze(2), qparams.zero_point.unsqueeze(2), qparams.low, qparams.high)
    return merge_groups(codes, values.shape)


def _input_module(activation: str, bits: int) -> nn.Module:
    """Build the module for an input by the name of its scheme."""
    return nn.Identity() if activation == "none" else Quantize(activation, bits)


class QuantLinear(LowBitLinear, QuantWeightLayer):
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
        storage = {"bits": bits, "granularity": granularity, "group_size": group_size, "levels": levels}
        super().__init__(in_features, out_features, bias, **storage)
        self.activation, self.activation_bits = activation, activation_bits
        self.input = _input_module(activation, activation_bits)

    def forward(self, input: Tensor) -> Tensor:
        """Quantize the input and map `(..., in_features)` to `(..., out_features)`."""
        return super().forward(self.input(input))


class QuantConv2d(LowBitConv2d, QuantWeightLayer):
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
        storage = {"bits": bits, "granularity": granularity, "group_size": group_size, "levels": levels}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **storage)
        self.activation, self.activation_bits = activation, activation_bits
        self.input = _input_module(activation, activation_bits)

    def forward(self, input: Tensor) -> Tensor:
        """Quantize images `(batch, in_channels, height, width)` and map them to `(batch, out_channels, ...)`."""
        return super().forward(self.input(input))


class QuantEmbedding(LowBitEmbedding, QuantWeightLayer):
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
        storage = {"bits": bits, "granularity": granularity, "group_size": group_size, "levels": levels}
        super().__init__(num_embeddings, embedding_dim, **storage)
