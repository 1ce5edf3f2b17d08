"""Modules that write LSTM layers as ONNX: the operator LSTM, or ONNX Runtime's DynamicQuantizeLSTM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.deploy.onnx.tensors import (
    OPSET,
    OnnxFloatWeight,
    OnnxInitializer,
    OnnxWeight,
    OnnxWiden,
    codebook_weight,
    codes_module,
    onnx_op,
)
from compression.nn.quantized.clustered import ClusteredLinear
from compression.nn.quantized.half import HalfLinear
from compression.nn.quantized.layers import QuantLinear
from compression.nn.recurrent import Direction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.nn.recurrent import BiLSTM


def to_onnx_gate_order(rows: Tensor) -> Tensor:
    """Reorder rows `(4 hidden, ...)` from `nn.LSTM`'s gates (input, forget, cell, output) to ONNX's (i, o, f, c)."""
    size = len(rows) // 4
    return torch.cat([rows[:size], rows[3 * size :], rows[size : 3 * size]])  # i, o, then f and c


class OnnxLSTM(nn.Module):
    """The operator LSTM, for a layer that multiplies with float weights, however they are stored."""

    def __init__(self, source: BiLSTM | Direction) -> None:
        super().__init__()
        self.inputs, self.hidden = map(_float_weights, _input_and_hidden_layers(source))
        self.bias = OnnxInitializer(_biases(source))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the states `(batch, length, directions x hidden)` for `values` `(batch, length, input)`."""
        return _apply_lstm("LSTM", values, lengths, [self.inputs(), self.hidden(), self.bias()], version=OPSET)


class OnnxDynamicLSTM(nn.Module):
    """DynamicQuantizeLSTM: quantizes the inputs of all steps at once over their range, the state at each step."""

    def __init__(self, source: BiLSTM | Direction) -> None:
        super().__init__()
        self.inputs, self.hidden = (_IntegerWeights(layers) for layers in _input_and_hidden_layers(source))
        self.bias = OnnxInitializer(_biases(source))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the states `(batch, length, directions x hidden)` for `values` `(batch, length, input)`."""
        qparams = [self.inputs.scale, self.inputs.zero_point, self.hidden.scale, self.hidden.zero_point]
        operands = [self.inputs(), self.hidden(), self.bias()]
        name = "com.microsoft::DynamicQuantizeLSTM"
        return _apply_lstm(name, values, lengths, operands, qparams, version=1)


class OnnxDirection(nn.Module):
    """A layer that reads forward, as `nn.recurrent.Direction` is called: with a mask, whose padding comes last."""

    def __init__(self, source: Direction) -> None:
        super().__init__()
        self.lstm = lstm_module(source)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the states `(batch, length, hidden)` for `values` `(batch, length, input)`."""
        states: Tensor = self.lstm(values, mask.sum(1))
        return states


class _StackedWeights(nn.Module):
    """The weights of all directions, `(directions, 4 hidden, inputs)`, cast to floats when the file is loaded."""

    def __init__(self, weights: Iterable[nn.Module]) -> None:
        super().__init__()
        self.weights = nn.ModuleList(weights)

    def forward(self) -> Tensor:
        return torch.stack([to_onnx_gate_order(weight()) for weight in self.weights])


class _IntegerWeights(nn.Module):
    """The codes of all directions, int8 `(directions, inputs, 4 hidden)`, with their scales and zero points."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, layers: list[QuantLinear]) -> None:
        super().__init__()
        first = layers[0]
        # Transposed: DynamicQuantizeLSTM takes (…, inputs, 4 hidden), where LSTM takes (…, 4 hidden, inputs).
        codes = torch.stack([to_onnx_gate_order(layer.codes).t() for layer in layers])
        self.codes = codes_module(codes, first.bits, first.code_step, first.qscheme == "odd")
        weights = [OnnxWeight(layer) for layer in layers]
        self.register_buffer("scale", _stack_qparams([weight.scale for weight in weights]))
        self.register_buffer("zero_point", _stack_qparams([weight.zero_point for weight in weights]))

    def forward(self) -> Tensor:
        codes: Tensor = self.codes()
        return codes


def _stack_qparams(qparams: list[Tensor]) -> Tensor:
    """Stack scales or zero points of all directions, each `(4 hidden,)` or a scalar."""
    # A scale for every row costs the kernel a fifth at one example; granularity=tensor does not (benchmarks/README.md).
    return torch.stack([to_onnx_gate_order(q) if q.ndim else q for q in qparams])


def _input_and_hidden_layers(source: BiLSTM | Direction) -> tuple[list[Any], list[Any]]:
    """Return the layers that multiply the inputs, and those that multiply the states, of each direction."""
    directions = (source,) if isinstance(source, Direction) else (source.ahead, source.back)
    return [direction.input for direction in directions], [direction.hidden for direction in directions]


def _apply_lstm(
    name: str, values: Tensor, lengths: Tensor, operands: list[Tensor], qparams: Sequence[Tensor] = (), *, version: int
) -> Tensor:
    """Apply an LSTM operator to `values` `(batch, length, input)`: states `(batch, length, directions x hidden)`.

    `operands` are the weights of inputs and of states, and the biases `(directions, 8 hidden)`.
    """
    steps, directions, size = values.transpose(0, 1), len(operands[2]), operands[2].shape[1] // 8  # ONNX: length first
    unused = (None, None, None) if qparams else ()  # initial state, initial cell, peepholes
    inputs = (steps, *operands, lengths.to(torch.int32), *unused, *qparams)
    shape = (steps.shape[0], directions, steps.shape[1], size)
    states = onnx_op(
        name,
        *inputs,
        dtype=torch.float32,
        shape=shape,
        version=version,
        direction="bidirectional" if directions == 2 else "forward",
        hidden_size=size,
    )
    # (length, directions, batch, hidden) to (batch, length, directions, hidden), whose last two dimensions become one.
    return states.permute(2, 0, 1, 3).flatten(2)


def _biases(source: BiLSTM | Direction) -> Tensor:
    """Return the biases `(directions, 8 hidden)`: those of the inputs, then zeros, as layers of states have none."""
    biases = torch.stack([to_onnx_gate_order(layer.bias.detach()) for layer in _input_and_hidden_layers(source)[0]])
    return torch.cat([biases, torch.zeros_like(biases)], 1)


def _float_weights(layers: list[Any]) -> nn.Module:
    """Return the module for the weights of all directions: a plain initializer if all are stored as floats."""
    # Not stacked in the graph, so that other tools find the weights: ONNX Runtime's quantizer looks for initializers.
    if all(isinstance(layer, nn.Linear) for layer in layers):
        return OnnxInitializer(torch.stack([to_onnx_gate_order(layer.weight.data) for layer in layers]))
    return _StackedWeights(map(_float_weight, layers))


def _float_weight(layer: nn.Module) -> nn.Module:
    """Return the module for the weight of one layer, cast to floats when the file is loaded."""
    if isinstance(layer, QuantLinear):
        return OnnxFloatWeight(layer)
    if isinstance(layer, ClusteredLinear):
        return codebook_weight(layer)
    assert isinstance(layer, nn.Linear | HalfLinear)
    return OnnxWiden(layer.weight.data) if isinstance(layer, HalfLinear) else OnnxInitializer(layer.weight.data)


def lstm_module(source: BiLSTM | Direction) -> nn.Module:
    """Return the module that writes an LSTM layer; either all of its linear layers quantize their inputs, or none."""
    has_quantized_input = [
        isinstance(m, QuantLinear) and m.activation != "none" for part in _input_and_hidden_layers(source) for m in part
    ]
    assert all(has_quantized_input) or not any(has_quantized_input), "no kernel quantizes the inputs of some layers"
    return OnnxDynamicLSTM(source) if all(has_quantized_input) else OnnxLSTM(source)
