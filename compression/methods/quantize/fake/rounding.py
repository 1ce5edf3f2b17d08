"""Layers that round their weight and input while they train, and what becomes of them when they are deployed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.nn.quantized import QParams, QuantConv2d, QuantLinear, conv_arguments


class Rounding(nn.Module):
    """Rounds a tensor to the levels of some numbers, with a gradient of its own."""

    def forward(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def numbers(self, values: Tensor) -> QParams:
        """The levels that a weight of these `values` is rounded to."""
        raise NotImplementedError

    def before(self, values: Tensor) -> Tensor:
        """What is rounded of them: the values, unless the method makes others of them first."""
        return values


class InputRounding(Rounding):
    """As `Rounding`, of what goes into a layer; `numbers` does not look at the values."""

    def activation(self) -> QParams:
        """What the deployed layer does to its input."""
        raise NotImplementedError


class RoundedLinear(nn.Linear):
    """`nn.Linear` on a rounded input, with a rounded weight."""

    rounding: Rounding
    source: nn.Module

    def __init__(self, layer: nn.Linear, rounding: Rounding, source: nn.Module) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        _take(self, layer, rounding, source)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(self.source(inputs), self.rounding(self.weight), self.bias)


class RoundedConv2d(nn.Conv2d):
    """`nn.Conv2d` on a rounded input, with a rounded weight."""

    rounding: Rounding
    source: nn.Module

    def __init__(self, layer: nn.Conv2d, rounding: Rounding, source: nn.Module) -> None:
        super().__init__(**conv_arguments(layer), bias=layer.bias is not None, device="meta")
        _take(self, layer, rounding, source)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._conv_forward(self.source(inputs), self.rounding(self.weight), self.bias)


Rounded = RoundedLinear | RoundedConv2d


def _take(made: Rounded, layer: nn.Linear | nn.Conv2d, rounding: Rounding, source: nn.Module) -> None:
    made.weight, made.bias = layer.weight, layer.bias
    made.rounding, made.source = rounding.to(layer.weight.device), source.to(layer.weight.device)
    if isinstance(mask := getattr(layer, "mask", None), Tensor):
        made.register_buffer("mask", mask, persistent=False)


def rounded(layer: nn.Linear | nn.Conv2d, rounding: Rounding, source: nn.Module) -> Rounded:
    """The layer to train in place of `layer`, with the same parameters."""
    if isinstance(layer, nn.Linear):
        return RoundedLinear(layer, rounding, source)
    return RoundedConv2d(layer, rounding, source)


def trainable(module: nn.Module) -> bool:
    """Whether the representation has a layer for `module`."""
    return type(module) is nn.Linear or type(module) is nn.Conv2d and module.padding_mode == "zeros"


@torch.no_grad()
def deployed(layer: Rounded, norm: nn.BatchNorm2d | nn.BatchNorm1d | None = None) -> QuantLinear | QuantConv2d:
    """The layer in integers; `norm`, which follows it, is folded into its scales and bias, its codes stay."""
    numbers, values = layer.rounding.numbers(layer.weight), layer.rounding(layer.weight)
    source = layer.source.activation() if isinstance(layer.source, InputRounding) else None
    plain = unrounded(layer, values)
    if norm is not None:
        by = factors(norm)
        fold(plain, norm, by)
        scale = numbers.scale * by.abs().unsqueeze(1)
        numbers = replace(numbers, scale=scale, zero_point=numbers.zero_point.expand_as(scale))
    made = QuantLinear if isinstance(plain, nn.Linear) else QuantConv2d
    return made.from_float(plain, numbers, source)  # type: ignore[arg-type]


def unrounded(layer: nn.Linear | nn.Conv2d, values: Tensor) -> nn.Linear | nn.Conv2d:
    """A plain layer like `layer`, with copies of its bias and of `values` as its weight."""
    plain: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    else:
        plain = nn.Conv2d(**conv_arguments(layer), device="meta")
    plain.weight = nn.Parameter(values.detach().clone())
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    return plain


def factors(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> Tensor:
    """What a batch norm in eval mode multiplies each channel by, `(channels,)`."""
    assert norm.running_var is not None
    gain = norm.weight if norm.affine else torch.ones_like(norm.running_var)
    return gain / (norm.running_var + norm.eps).sqrt()


def foldable(layer: Rounded, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> bool:
    """Whether the norm can go into the scales with no code changed: each factor not zero, and its sign free to turn.

    A negative factor needs the negative of every code it meets, and the lowest of a two's complement has none.
    """
    by = factors(norm)
    numbers, values = layer.rounding.numbers(layer.weight), layer.rounding(layer.weight)
    if bool((by.abs() < 1e-6).any()):
        return False
    if numbers.qscheme == "odd" or -numbers.low <= numbers.high:
        return True
    lowest = values.flatten(1).amin(1) < (numbers.low + 0.5) * numbers.scale.flatten()
    return not bool((lowest & (by < 0)).any())


def fold(plain: nn.Linear | nn.Conv2d, norm: nn.BatchNorm2d | nn.BatchNorm1d, by: Tensor) -> None:
    """Put `norm`, whose factors are `by`, into the weight and bias of `plain`, in place."""
    assert norm.running_mean is not None
    shift = norm.bias if norm.affine else torch.zeros_like(by)
    before = torch.zeros_like(by) if plain.bias is None else plain.bias
    plain.bias = nn.Parameter((shift + (before - norm.running_mean) * by).detach())
    plain.weight = nn.Parameter((plain.weight * along(by, plain.weight)).detach())


def along(by: Tensor, weight: Tensor) -> Tensor:
    """`by` `(outputs,)`, shaped to multiply a weight's outputs."""
    return by.view(-1, *[1] * (weight.ndim - 1))


def round_through(values: Tensor) -> Tensor:
    """Rounded to the nearest, with the gradient of `values`."""
    return (values.round() - values).detach() + values


def sign(values: Tensor) -> Tensor:
    """-1 or +1; +1 for zero, as in Courbariaux et al., eq. 1."""
    return torch.where(values >= 0, 1.0, -1.0)
