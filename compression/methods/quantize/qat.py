"""Quantization-aware training: the network learns to live with the rounding that static quantization will do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.quantize.calibration import pictures
from compression.methods.quantize.calibration.activations import batches, observe
from compression.methods.quantize.calibration.observers import OBSERVERS, Observed
from compression.methods.quantize.calibration.scheme import Calibrated
from compression.methods.quantize.calibration.selection import tell_recurrent
from compression.methods.quantize.calibration.weights import weight_numbers
from compression.methods.quantize.fake.rounding import along, factors, fold, unrounded
from compression.methods.quantize.static import quantized
from compression.methods.quantize.wiring.between import floats_seen, round_inputs
from compression.methods.quantize.wiring.folding import relu_before_pool
from compression.methods.quantize.wiring.order import Order
from compression.nn.layers import Add
from compression.nn.quantized import (
    QParams,
    QuantAdd,
    QuantAvgPool2d,
    QuantEmbedding,
    calc_qparams,
    code_range,
    dequantize,
    conv_arguments,
    merge_groups,
    quantize,
    split_groups,
)
from compression.params import group, param
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import fit

RATE = 0.01  # of the moving averages of the ranges, from batch to batch
SMALLEST = 1e-6  # factor of a batch norm; a channel below is as good as gone, and is divided by


@dataclass(frozen=True)
class Qat(Calibrated):
    """Train with weights and activations rounded where static quantization rounds them.  Jacob et al. 2018,
    arXiv:1712.05877, section 3: gradients pass the rounding (zero outside of the range), weights are rounded as they
    will be with their batch norm folded in. Weights' ranges follow the weights, activations' are moving averages,
    unless another observer is chosen: then they stay as calibrated before the training. At 4 bits and below take the
    observers `mse` for both: one outlier takes most of so few levels.
    """

    observer: str = param(
        "moving_average",
        "range of an activation: moving_average follows the training, the others stay as calibrated",
        choices=OBSERVERS,
        search=OBSERVERS,
    )
    weight_observer: str = param(
        "minmax", "range of a weight: all of it, or that of the least squared error (slow)", choices=("minmax", "mse")
    )
    calibration_samples: int = param(256, "training examples to see activations of before", interval="[1, inf)")
    freeze_observers: float = param(
        0.75, "share of the training after which the ranges of activations stay", interval="[0, 1]"
    )
    freeze_norm: float = param(
        0.75, "share of the training after which batch norms use the statistics they have", interval="[0, 1]"
    )
    training: Training = group(Training)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device)
        relu_before_pool(model)
        found = self.layers(model, nn.Conv2d, nn.Linear, nn.Embedding)
        tell_recurrent(model, context.record)
        tables = {name: m for name, m in found.items() if isinstance(m, nn.Embedding)}
        self.insert(model, {name: m for name, m in found.items() if name not in tables}, context)

        def on_step(step: int, steps: int) -> None:
            freeze(model, observers=step >= self.freeze_observers * steps, norms=step >= self.freeze_norm * steps)

        model = fit(model, context, self.training, on_step=on_step)
        self.draw(model, context)
        for name, module in list(model.named_modules()):
            if isinstance(module, (FakeLayer, FakeAdd, FakeAvgPool)):
                model.set_submodule(name, module.deployed())
        for name, table in tables.items():
            model.set_submodule(name, QuantEmbedding.from_float(table, self.weight_numbers(table, None)))
        data = batches(context, self.calibration_samples)
        return round_inputs(model.to(context.device), floats_seen(model, data), data[0])

    def draw(self, model: nn.Module, context: Context) -> None:
        """Pictures of some layers' weights, batch norms folded in, and inputs, with the ranges of their codes."""
        layers = {name: m for name, m in model.named_modules() if isinstance(m, FakeLayer)}
        weights = {name: (m.folded().detach(), self.rounding(m.folded().detach())) for name, m in layers.items()}
        inputs = {name: m.source.activation() for name, m in layers.items()}
        pictures.keep_trained(context.record, model, weights, inputs, batches(context, self.calibration_samples))

    def insert(self, model: nn.Module, layers: dict[str, nn.Module], context: Context) -> None:
        """Swap `layers`, sums and mean poolings for those that round, in place; batch norms move into the layers."""
        others = {name: m for name, m in model.named_modules() if type(m) in (Add, nn.AdaptiveAvgPool2d)}
        data = batches(context, self.calibration_samples)
        order = Order.of(model, data[0])
        for name, held in observe(model, layers | others, data).items():
            inputs = [self.input_range(model.get_submodule(name), observed) for observed in held]
            if name in others:
                pool = others[name]
                rounded = FakeAvgPool(pool, *inputs) if isinstance(pool, nn.AdaptiveAvgPool2d) else FakeAdd(*inputs)
                model.set_submodule(name, rounded)
                continue
            norm = order.norms.get(name)
            follows = model.get_submodule(norm) if norm else None
            made = FakeLayer.of(layers[name], follows, self.rounding, inputs[0])
            model.set_submodule(name, made.to(context.device))
            if norm:
                model.set_submodule(norm, nn.Identity())

    def input_range(self, module: nn.Module, observed: Observed) -> InputRange:
        """The rounding of what goes into a layer, sum or pooling that was given `observed`."""
        bits = self.input_bits(module)
        return InputRange(bits, *self.bounds(observed, bits), follows=self.observer == "moving_average")

    def rounding(self, weight: Tensor) -> QParams:
        """The numbers of a weight as it stands."""
        return weight_numbers(
            weight,
            self.bits,
            self.granularity,
            self.group_size,
            self.symmetric,
            self.activation_bits,
            self.weight_observer,
        )


def freeze(model: nn.Module, observers: bool, norms: bool) -> None:
    """Let ranges and batch norms follow the data, or not."""
    for module in model.modules():
        if isinstance(module, InputRange):
            module.frozen = observers
        elif isinstance(module, FakeLayer):
            module.frozen = norms


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """`values` at their nearest levels; the gradient is 1 within the range of the codes and 0 outside."""
    rounded = dequantize(quantize(values, scale, zero_point, low, high), scale, zero_point)
    passing = torch.clamp(values, (low - zero_point) * scale, (high - zero_point) * scale)
    return (rounded - passing).detach() + passing


class Freezable(nn.Module):
    """A module whose `frozen` is part of its state, so that a resumed training goes on as it was."""

    frozen: bool = False

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.frozen)

    def set_extra_state(self, state: Tensor) -> None:
        self.frozen = bool(state)


class InputRange(Freezable):
    """Rounds an activation within a range that may follow its smallest and largest value: section 3.1 of the paper."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, low: Tensor, high: Tensor, follows: bool) -> None:
        super().__init__()
        self.bits, self.follows = bits, follows
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, values: Tensor) -> Tensor:
        if self.training and self.follows and not self.frozen:
            with torch.no_grad():
                self.low.lerp_(values.amin().float(), RATE)
                self.high.lerp_(values.amax().float(), RATE)
        numbers = self.activation()
        return fake_quantize(values, numbers.scale, numbers.zero_point, numbers.low, numbers.high)

    def activation(self) -> QParams:
        codes = code_range(self.bits, signed=False)
        return QParams(self.bits, *calc_qparams(self.low, self.high, *codes, symmetric=False), *codes)


class FakeAdd(nn.Module):
    """A sum of two rounded inputs."""

    def __init__(self, left: InputRange, right: InputRange) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)

    def deployed(self) -> nn.Module:
        """The sum in integers."""
        return QuantAdd.from_qparams(self.left.activation(), self.right.activation())


class FakeAvgPool(nn.Module):
    """The mean of each channel of a rounded input."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d, source: InputRange) -> None:
        super().__init__()
        self.pool, self.source = pool, source

    def forward(self, values: Tensor) -> Tensor:
        return self.pool(self.source(values))

    def deployed(self) -> nn.Module:
        """The pooling in integers."""
        return QuantAvgPool2d.from_float(self.pool, self.source.activation())


Rounding = Callable[[Tensor], QParams]


class FakeLayer(Freezable):
    """A layer on a rounded input, its weight rounded with the batch norm after it folded in.

    Out of the convolution the norm's factor is divided again, so that in training it sees what it would have seen.
    """

    norm: Any
    rounding: Rounding
    source: InputRange

    @staticmethod
    def of(layer: nn.Module, norm: nn.Module | None, rounding: Rounding, source: InputRange) -> FakeLayer:
        """The layer to train in place of `layer` and of `norm`, with the same parameters."""
        made = FakeLinear if isinstance(layer, nn.Linear) else FakeConv2d
        return made(cast(Any, layer), norm, rounding, source)

    def take(self, layer: nn.Module, norm: nn.Module | None, rounding: Rounding, source: InputRange) -> None:
        like, me = cast(Any, layer), cast(Any, self)
        me.weight, me.bias = like.weight, like.bias
        self.norm, self.rounding, self.source = norm, rounding, source
        if isinstance(mask := getattr(layer, "mask", None), Tensor):
            self.register_buffer("mask", mask, persistent=False)

    def compute(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """What the layer does without its bias."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        by, me = self.factors(), cast(Any, self)
        outputs = self.compute(self.source(inputs), self.rounded(self.folded()))
        if by is not None:
            outputs = outputs / self.spread(by)
        if me.bias is not None:
            outputs = outputs + self.spread(me.bias)
        if by is None:
            return outputs
        self.norm.train(self.training and not self.frozen)
        return self.norm(outputs)

    def folded(self) -> Tensor:
        """The weight with the factors of the norm in it."""
        by, weight = self.factors(), cast(Tensor, self.weight)
        return weight if by is None else weight * along(by, weight)

    def spread(self, values: Tensor) -> Tensor:
        """`values` `(outputs,)`, shaped to go with the layer's outputs."""
        return values.view(-1, *[1] * (cast(Tensor, self.weight).ndim - 2))

    def rounded(self, weight: Tensor) -> Tensor:
        numbers = self.rounding(weight.detach())
        groups = split_groups(weight, numbers.granularity, numbers.group_size)
        scale, zero_point = numbers.scale.unsqueeze(2), numbers.zero_point.unsqueeze(2)
        return merge_groups(fake_quantize(groups, scale, zero_point, numbers.low, numbers.high), weight.shape)

    def factors(self) -> Tensor | None:
        """What the norm will multiply each output by."""
        if self.norm is None:
            return None
        by = factors(self.norm)
        return torch.where(by.abs() < SMALLEST, SMALLEST, by)

    @torch.no_grad()
    def deployed(self) -> nn.Module:
        """The layer in integers, the norm in its weight and bias."""
        plain = unrounded(cast(Any, self), cast(Tensor, self.weight))
        by = self.factors()
        if by is not None:
            fold(plain, self.norm, by)
        return quantized(plain, self.rounding(plain.weight.detach()), self.source.activation())


class FakeLinear(FakeLayer, nn.Linear):
    """`nn.Linear` in quantization-aware training."""

    def __init__(self, layer: nn.Linear, norm: nn.Module | None, rounding: Rounding, source: InputRange) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.take(layer, norm, rounding, source)

    def compute(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return F.linear(inputs, weight)


class FakeConv2d(FakeLayer, nn.Conv2d):
    """`nn.Conv2d` in quantization-aware training."""

    def __init__(self, layer: nn.Conv2d, norm: nn.Module | None, rounding: Rounding, source: InputRange) -> None:
        nn.Conv2d.__init__(self, **conv_arguments(layer), bias=layer.bias is not None, device="meta")
        self.take(layer, norm, rounding, source)

    def compute(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(inputs, weight, None)
