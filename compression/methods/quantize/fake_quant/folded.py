"""Fake quantization for qat: ranges that follow the training, and weights with the batch norm after them folded in.

Jacob et al. 2018, arXiv:1712.05877, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.quantize.calibration.observers import activation_qparams
from compression.methods.quantize.calibration.weights import quantize_layer
from compression.methods.quantize.fake_quant.layers import InputFakeQuantize, copy_mask
from compression.methods.quantize.fake_quant.norms import (
    MIN_FACTOR,
    BatchNorm,
    fold_norm,
    norm_factors,
    plain_layer,
    scale_outputs,
)
from compression.methods.quantize.fake_quant.ste import fake_quantize
from compression.nn.layers import Concat
from compression.nn.quantized import (
    QParams,
    QuantAdd,
    QuantAvgPool2d,
    QuantConcat,
    QuantConv2d,
    QuantLinear,
    conv_arguments,
    merge_groups,
    split_groups,
)

AVERAGING_RATE = 0.01  # of the moving averages of ranges, per batch

WeightQParams = Callable[[Tensor], QParams]  # chooses the quantization parameters of a weight as it stands


class Freezable(nn.Module):
    """A module that stops following the data once it is `frozen`, which resuming a training restores."""

    frozen: bool = False

    def get_extra_state(self) -> Tensor:
        """`frozen` as a tensor, which `state_dict` can hold."""
        return torch.tensor(self.frozen)

    def set_extra_state(self, state: Tensor) -> None:
        """Take `frozen` from a loaded state."""
        self.frozen = bool(state)


def freeze(model: nn.Module, observers: bool, norms: bool) -> None:
    """Freeze the ranges of inputs and the statistics of batch norms, or let them follow the data."""
    for module in model.modules():
        if isinstance(module, RangeFakeQuantize):
            module.frozen = observers
        elif isinstance(module, FoldedFakeQuantLayer):
            module.frozen = norms


class RangeFakeQuantize(InputFakeQuantize, Freezable):
    """Rounds an input within a range; with `follows` it is a moving average of batch minima and maxima: section 3.1."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, low: Tensor, high: Tensor, follows: bool) -> None:
        super().__init__()
        self.bits, self.follows = bits, follows
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, values: Tensor) -> Tensor:
        """Round `values`, in training after the range has followed them."""
        if self.training and self.follows and not self.frozen:
            with torch.no_grad():
                self.low.lerp_(values.amin().float(), AVERAGING_RATE)
                self.high.lerp_(values.amax().float(), AVERAGING_RATE)
        qparams = self.qparams()
        return fake_quantize(values, qparams.scale, qparams.zero_point, qparams.low, qparams.high)

    def qparams(self) -> QParams:
        """The parameters of the range as it stands."""
        return activation_qparams(self.bits, self.low, self.high)


class FakeQuantAdd(nn.Module):
    """A sum of two fake-quantized inputs."""

    def __init__(self, left: RangeFakeQuantize, right: RangeFakeQuantize) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum, in the shape of the inputs."""
        total: Tensor = self.left(left) + self.right(right)
        return total

    def convert(self) -> QuantAdd:
        """The sum in integers."""
        return QuantAdd.from_qparams(self.left.qparams(), self.right.qparams())


class FakeQuantConcat(nn.Module):
    """A concatenation along the channels of fake-quantized inputs."""

    def __init__(self, inputs: Sequence[RangeFakeQuantize]) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Put tensors `(batch, channels, ...)` one behind the other."""
        return torch.cat([rounded(values) for rounded, values in zip(self.inputs, inputs, strict=True)], 1)

    def convert(self) -> QuantConcat:
        """The concatenation in integers."""
        return QuantConcat.from_qparams([cast("RangeFakeQuantize", each).qparams() for each in self.inputs])


class FakeQuantAvgPool2d(nn.Module):
    """Mean pooling of a fake-quantized input."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d, input_fake_quant: RangeFakeQuantize) -> None:
        super().__init__()
        self.pool, self.input_fake_quant = pool, input_fake_quant

    def forward(self, values: Tensor) -> Tensor:
        """Means `(batch, channels, …)` of `values` `(batch, channels, height, width)`."""
        means: Tensor = self.pool(self.input_fake_quant(values))
        return means

    def convert(self) -> QuantAvgPool2d:
        """The pooling in integers."""
        return QuantAvgPool2d.from_float(self.pool, self.input_fake_quant.qparams())


# What trains in place of one of the `nn.layers.WEIGHTLESS`.
FakeQuantWeightless = FakeQuantAdd | FakeQuantConcat | FakeQuantAvgPool2d


def fake_quantize_weightless(module: nn.Module, inputs: Sequence[RangeFakeQuantize]) -> FakeQuantWeightless:
    """The module to train in place of a sum, concatenation or pooling, with this fake quantization of its inputs."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return FakeQuantAvgPool2d(module, inputs[0])
    if isinstance(module, Concat):
        return FakeQuantConcat(inputs)
    left, right = inputs
    return FakeQuantAdd(left, right)


class FoldedFakeQuantLayer(Freezable):
    """A layer with a fake-quantized input, and a weight that is rounded with the batch norm after it folded in.

    The outputs are divided by the norm's factors again, so that in training the norm is given what it would have been
    given without the folding.
    """

    weight: Any  # parameters of the layer, whose class comes after this one
    bias: Any
    norm: BatchNorm | None
    weight_qparams: WeightQParams
    input_fake_quant: RangeFakeQuantize

    def _adopt(
        self,
        layer: nn.Linear | nn.Conv2d,
        norm: BatchNorm | None,
        weight_qparams: WeightQParams,
        input_fake_quant: RangeFakeQuantize,
    ) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.norm, self.weight_qparams, self.input_fake_quant = norm, weight_qparams, input_fake_quant
        copy_mask(layer, self)

    def compute(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """The layer's outputs without its bias."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """The outputs of the layer and its norm."""
        factors = self.factors()
        # The weight is scaled by the running statistics, so one product is enough: with those of the batch, as in Jacob
        # et al., a first one is needed to know them.
        outputs = self.compute(self.input_fake_quant(input), self._rounded(self.folded_weight()))
        if factors is not None:
            outputs = outputs / self._per_channel(factors)
        if self.bias is not None:
            outputs = outputs + self._per_channel(self.bias)
        if self.norm is None:
            return outputs
        # In every pass: `model.train()` puts a frozen norm, too, back into training mode.
        self.norm.train(self.training and not self.frozen)
        normalized: Tensor = self.norm(outputs)
        return normalized

    def factors(self) -> Tensor | None:
        """What the norm will multiply each output by, `(outputs,)`, at least MIN_FACTOR: outputs are divided by it."""
        if self.norm is None:
            return None
        factors = norm_factors(self.norm)
        return torch.where(factors.abs() < MIN_FACTOR, MIN_FACTOR, factors)

    def folded_weight(self) -> Tensor:
        """The weight times the factors of the norm."""
        factors, weight = self.factors(), cast("Tensor", self.weight)
        return weight if factors is None else scale_outputs(weight, factors)

    def _per_channel(self, values: Tensor) -> Tensor:
        """`values` `(outputs,)` in a shape that broadcasts over the layer's outputs."""
        # (outputs, 1, 1) for images, (outputs,) behind a linear layer.
        return values.view(-1, *[1] * (self.weight.ndim - 2))

    def _rounded(self, weight: Tensor) -> Tensor:
        # Detached: scales follow the weights, and no gradient goes through them.
        qparams = self.weight_qparams(weight.detach())
        groups = split_groups(weight, qparams.granularity, qparams.group_size)
        scale, zero_point = qparams.scale.unsqueeze(2), qparams.zero_point.unsqueeze(2)
        return merge_groups(fake_quantize(groups, scale, zero_point, qparams.low, qparams.high), weight.shape)

    @torch.no_grad()
    def convert(self) -> QuantLinear | QuantConv2d:
        """The layer in integers, with the norm in its weight and bias."""
        plain = plain_layer(cast("nn.Linear | nn.Conv2d", self), self.weight)
        factors = self.factors()
        if self.norm is not None and factors is not None:
            fold_norm(plain, self.norm, factors)
        return quantize_layer(plain, self.weight_qparams(plain.weight.detach()), self.input_fake_quant.qparams())


class FoldedFakeQuantLinear(FoldedFakeQuantLayer, nn.Linear):
    """`nn.Linear` in quantization-aware training; it shares the parameters of `layer`."""

    def __init__(
        self,
        layer: nn.Linear,
        norm: BatchNorm | None,
        weight_qparams: WeightQParams,
        input_fake_quant: RangeFakeQuantize,
    ) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self._adopt(layer, norm, weight_qparams, input_fake_quant)

    def compute(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Products `(…, outputs)` of inputs `(…, inputs)`."""
        return F.linear(inputs, weight)


class FoldedFakeQuantConv2d(FoldedFakeQuantLayer, nn.Conv2d):
    """`nn.Conv2d` in quantization-aware training; it shares the parameters of `layer`."""

    def __init__(
        self,
        layer: nn.Conv2d,
        norm: BatchNorm | None,
        weight_qparams: WeightQParams,
        input_fake_quant: RangeFakeQuantize,
    ) -> None:
        nn.Conv2d.__init__(self, **conv_arguments(layer), bias=layer.bias is not None, device="meta")
        self._adopt(layer, norm, weight_qparams, input_fake_quant)

    def compute(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Outputs `(batch, outputs, height, width)` for inputs `(batch, inputs, height, width)`."""
        outputs: Tensor = self._conv_forward(inputs, weight, None)
        return outputs


def fold_and_fake_quantize(
    layer: nn.Linear | nn.Conv2d,
    norm: BatchNorm | None,
    weight_qparams: WeightQParams,
    input_fake_quant: RangeFakeQuantize,
) -> FoldedFakeQuantLayer:
    """The layer to train in place of `layer` and of `norm`, with the same parameters."""
    if isinstance(layer, nn.Linear):
        return FoldedFakeQuantLinear(layer, norm, weight_qparams, input_fake_quant)
    return FoldedFakeQuantConv2d(layer, norm, weight_qparams, input_fake_quant)
