"""Recurrent layers as ONNX: the operator LSTM, or the one of ONNX Runtime that multiplies integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression.deploy.onnx.tensors import (
    OPSET,
    OnnxFloatWeight,
    OnnxWeight,
    Plain,
    Widened,
    integers,
    op,
    shared_weight,
)
from compression.nn.quantized.clustered import ClusteredLinear
from compression.nn.quantized.half import HalfLinear
from compression.nn.quantized.layers import QuantLinear
from compression.nn.recurrent import BiLSTM


def ordered(rows: Tensor) -> Tensor:
    """The rows of `nn.LSTM`'s gates (input, forget, cell, output) as ONNX has them: input, output, forget, cell."""
    size = len(rows) // 4
    return torch.cat([rows[:size], rows[3 * size :], rows[size : 3 * size]])


class OnnxLSTM(nn.Module):
    """The operator LSTM: a BiLSTM whose weights are floats in the end, however they are stored."""

    def __init__(self, source: BiLSTM) -> None:
        super().__init__()
        self.inputs, self.hidden = map(_floats, _layers(source))
        self.bias = Plain(_biases(source))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return _run("LSTM", values, lengths, [self.inputs(), self.hidden(), self.bias()], version=OPSET)


class OnnxDynamicLSTM(nn.Module):
    """DynamicQuantizeLSTM: the inputs of all steps at once by their range, the last state of each step by its own."""

    def __init__(self, source: BiLSTM) -> None:
        super().__init__()
        self.inputs, self.hidden = (_Codes(layers) for layers in _layers(source))
        self.bias = Plain(_biases(source))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        numbers = [self.inputs.scale, self.inputs.zero_point, self.hidden.scale, self.hidden.zero_point]
        operands = [self.inputs(), self.hidden(), self.bias()]
        return _run("com.microsoft::DynamicQuantizeLSTM", values, lengths, operands, numbers, version=1)


class _Floats(nn.Module):
    """The weights of both directions, `(2, 4 hidden, inputs)`, made floats when the file is loaded."""

    def __init__(self, forms: Iterable[nn.Module]) -> None:
        super().__init__()
        self.forms = nn.ModuleList(forms)

    def forward(self) -> Tensor:
        return torch.stack([ordered(weight()) for weight in self.forms])


class _Codes(nn.Module):
    """The integers of both directions, `(2, inputs, 4 hidden)`."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, layers: list[QuantLinear]) -> None:
        super().__init__()
        first = layers[0]
        codes = torch.stack([ordered(layer.codes).t() for layer in layers])
        self.codes = integers(codes, first.bits, first.code_step, first.qscheme == "odd")
        each = [OnnxWeight(layer) for layer in layers]
        self.register_buffer("scale", _of_gates([weight.scale for weight in each]))
        self.register_buffer("zero_point", _of_gates([weight.zero_point for weight in each]))

    def forward(self) -> Tensor:
        return self.codes()


def _of_gates(numbers: list[Tensor]) -> Tensor:
    """Scales or zero points `(4 hidden,)` of both layers as `(2, 4 hidden)`; single ones as `(2,)`."""
    return torch.stack([ordered(n) if n.ndim else n for n in numbers])


def _layers(source: BiLSTM) -> tuple[list[Any], list[Any]]:
    """What multiplies the inputs, and what the states, each ahead and back."""
    directions = (source.ahead, source.back)
    return [direction.input for direction in directions], [direction.hidden for direction in directions]


def _run(
    name: str, values: Tensor, lengths: Tensor, operands: list[Tensor], numbers: Sequence[Tensor] = (), *, version: int
) -> Tensor:
    """What the operator gives, `(batch, length, 2 hidden)`; in ONNX the length comes first.

    `operands` are the weights of inputs and of states, and the biases `(2, 8 hidden)`.
    """
    steps, size = values.transpose(0, 1), operands[2].shape[1] // 8
    unused = (None, None, None) if numbers else ()  # first states and peepholes
    inputs: Any = (steps, *operands, lengths.to(torch.int32), *unused, *numbers)
    made: dict[str, Any] = {"dtype": torch.float32, "shape": (steps.shape[0], 2, steps.shape[1], size)}
    states = op(name, *inputs, **made, version=version, direction="bidirectional", hidden_size=size)
    return states.permute(2, 0, 1, 3).flatten(2)


def _biases(source: BiLSTM) -> Tensor:
    """`(2, 8 hidden)`: the biases of inputs, and none of states, which would add up with them."""
    biases = torch.stack([ordered(layer.bias.detach()) for layer in _layers(source)[0]])
    return torch.cat([biases, torch.zeros_like(biases)], 1)


def _floats(layers: list[Any]) -> nn.Module:
    """The float weights of both directions: a plain initializer, or what becomes one when the file is loaded."""
    if all(isinstance(layer, nn.Linear) for layer in layers):
        return Plain(torch.stack([ordered(layer.weight.data) for layer in layers]))
    return _Floats(map(_small, layers))


def _small(layer: nn.Module) -> nn.Module:
    """The weight of a layer that is stored in less than floats, or is one."""
    if isinstance(layer, QuantLinear):
        return OnnxFloatWeight(layer)
    if isinstance(layer, ClusteredLinear):
        return shared_weight(layer)
    assert isinstance(layer, nn.Linear | HalfLinear)
    return Widened(layer.weight.data) if isinstance(layer, HalfLinear) else Plain(layer.weight.data)


def recurrent(source: BiLSTM) -> nn.Module:
    """The form of a BiLSTM; its four layers round their inputs all or none of them."""
    rounding = [isinstance(m, QuantLinear) and m.activation != "none" for part in _layers(source) for m in part]
    assert all(rounding) or not any(rounding), "no kernel rounds the inputs of some of an LSTM's layers"
    return OnnxDynamicLSTM(source) if all(rounding) else OnnxLSTM(source)
