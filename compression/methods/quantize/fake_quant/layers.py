"""Layers with fake-quantized weights and inputs, and their conversion to integers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.quantize.calibration.weights import quantize_layer
from compression.methods.quantize.fake_quant.norms import MIN_FACTOR, BatchNorm, fold_norm, norm_factors, plain_layer
from compression.nn.quantized import QParams, QuantConv2d, QuantLinear, conv_arguments


class FakeQuantize(nn.Module):
    """Rounds a tensor to the levels of integer codes, with a gradient that the method defines; the shape stays."""

    def forward(self, values: Tensor) -> Tensor:
        """Round `values`."""
        raise NotImplementedError


class WeightFakeQuantize(FakeQuantize):
    """Fake quantization of a weight `(outputs, …)`."""

    def qparams(self, weight: Tensor) -> QParams:
        """The quantization parameters of the levels that `weight` is rounded to."""
        raise NotImplementedError

    def transform(self, weight: Tensor) -> Tensor:
        """What `forward` rounds: the weight itself, unless the method makes other values of it first."""
        return weight


class InputFakeQuantize(FakeQuantize):
    """Fake quantization of the input of a layer."""

    def qparams(self) -> QParams:
        """The quantization parameters of the levels, per tensor with unsigned codes."""
        raise NotImplementedError


class FakeQuantLinear(nn.Linear):
    """`nn.Linear` with a fake-quantized weight and input; it shares the parameters of `layer`."""

    weight_fake_quant: WeightFakeQuantize
    input_fake_quant: nn.Module

    def __init__(self, layer: nn.Linear, weight_fake_quant: WeightFakeQuantize, input_fake_quant: nn.Module) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        _adopt(self, layer, weight_fake_quant, input_fake_quant)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs `(…, outputs)` for input `(…, inputs)`."""
        return F.linear(self.input_fake_quant(input), self.weight_fake_quant(self.weight), self.bias)


class FakeQuantConv2d(nn.Conv2d):
    """`nn.Conv2d` with a fake-quantized weight and input; it shares the parameters of `layer`."""

    weight_fake_quant: WeightFakeQuantize
    input_fake_quant: nn.Module

    def __init__(self, layer: nn.Conv2d, weight_fake_quant: WeightFakeQuantize, input_fake_quant: nn.Module) -> None:
        super().__init__(**conv_arguments(layer), bias=layer.bias is not None, device="meta")
        _adopt(self, layer, weight_fake_quant, input_fake_quant)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs `(batch, outputs, height, width)` for input `(batch, inputs, height, width)`."""
        weight = self.weight_fake_quant(self.weight)
        outputs: Tensor = self._conv_forward(self.input_fake_quant(input), weight, self.bias)
        return outputs


FakeQuantLayer = FakeQuantLinear | FakeQuantConv2d


def _adopt(
    fake_quant: FakeQuantLayer,
    layer: nn.Linear | nn.Conv2d,
    weight_fake_quant: WeightFakeQuantize,
    input_fake_quant: nn.Module,
) -> None:
    device = layer.weight.device
    fake_quant.weight, fake_quant.bias = layer.weight, layer.bias
    fake_quant.weight_fake_quant = weight_fake_quant.to(device)
    fake_quant.input_fake_quant = input_fake_quant.to(device)
    copy_mask(layer, fake_quant)


def copy_mask(layer: nn.Module, to: nn.Module) -> None:
    """Give `to` the pruning mask of `layer`, if it has one."""
    if isinstance(mask := getattr(layer, "mask", None), Tensor):
        to.register_buffer("mask", mask, persistent=False)


def fake_quantized(
    layer: nn.Linear | nn.Conv2d, weight_fake_quant: WeightFakeQuantize, input_fake_quant: nn.Module
) -> FakeQuantLayer:
    """The layer to train in place of `layer`, with the same parameters."""
    if isinstance(layer, nn.Linear):
        return FakeQuantLinear(layer, weight_fake_quant, input_fake_quant)
    return FakeQuantConv2d(layer, weight_fake_quant, input_fake_quant)


@torch.no_grad()
def convert(layer: FakeQuantLayer, norm: BatchNorm | None = None) -> QuantLinear | QuantConv2d:
    """The layer in integers; a `norm` that follows it is folded into its scales and bias, and the codes stay."""
    weight = layer.weight_fake_quant(layer.weight)
    qparams = layer.weight_fake_quant.qparams(layer.weight)
    activation = layer.input_fake_quant.qparams() if isinstance(layer.input_fake_quant, InputFakeQuantize) else None
    plain = plain_layer(layer, weight)
    if norm is not None:
        factors = norm_factors(norm)
        fold_norm(plain, norm, factors)
        # A factor's magnitude goes into the scale; its sign is in the folded weight, and turns that of the codes. A
        # scale per tensor, (1, 1), becomes one per channel, (outputs, 1).
        scale = qparams.scale * factors.abs().unsqueeze(1)
        qparams = replace(qparams, scale=scale, zero_point=qparams.zero_point.expand_as(scale))
    return quantize_layer(plain, qparams, activation)


def is_foldable(layer: FakeQuantLayer, norm: BatchNorm) -> bool:
    """Whether `norm` can be folded into the layer's scales without a change of its codes.

    No factor may be zero, and a negative one turns the sign of all codes that it meets: the lowest code of a two's
    complement has no negative.
    """
    factors = norm_factors(norm)
    if bool((factors.abs() < MIN_FACTOR).any()):
        return False
    qparams = layer.weight_fake_quant.qparams(layer.weight)
    if qparams.qscheme == "odd" or -qparams.low <= qparams.high:
        return True
    weight = layer.weight_fake_quant(layer.weight)
    # Half a step above the lowest level, so that the rounding of products does not decide.
    has_lowest = weight.flatten(1).amin(1) < (qparams.low + 0.5) * qparams.scale.flatten()
    return not bool((has_lowest & (factors < 0)).any())
