"""Dynamic quantization: weights become integers ahead of time, activations when they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compression.errors import UserError
from compression.methods.quantize.calibration.scheme import WeightQuantization
from compression.methods.quantize.calibration.selection import warn_of_float_recurrent_layers
from compression.nn.graph import replace_module
from compression.nn.layers import weight
from compression.nn.quantized import DYNAMIC, QuantEmbedding, QuantLinear
from compression.nn.recurrent import BiLSTM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compression.training.context import Context


@dataclass(frozen=True)
class Dynamic(WeightQuantization):
    """Integer weights in linear layers, LSTMs and embeddings; inputs are quantized to 8 bits over their own range.

    As torch's quantize_dynamic does it. A range is that of a whole batch, and in an LSTM those of all inputs and of the
    last state at each step, so outputs depend a little on the other examples of the batch. Nothing is calibrated.
    """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantize in place."""
        layers = self.select_layers(model, context.task.example(2), nn.Linear, nn.Embedding, BiLSTM)
        self.require_kernel(layers)
        # An LSTM is selected or skipped as a whole: its kernel takes all four matrices as integers, or none
        # (deploy.onnx.lstm).
        for name in [name for name, layer in layers.items() if isinstance(layer, BiLSTM)]:
            lstm = layers.pop(name)
            layers |= {f"{name}.{part}": gates for part, gates in lstm.named_modules() if isinstance(gates, nn.Linear)}
        self.log_weight_histograms(model, list(layers), 8, context.record)
        for name, layer in layers.items():
            if isinstance(layer, nn.Linear):
                qparams = self.weight_qparams(weight(layer), 8)
                replace_module(model, name, QuantLinear.from_float(layer, qparams, DYNAMIC))
            elif isinstance(layer, nn.Embedding):
                qparams = self.weight_qparams(weight(layer), None)
                replace_module(model, name, QuantEmbedding.from_float(layer, qparams))
        warn_of_float_recurrent_layers(model, context.record)
        return model

    def require_kernel(self, layers: Mapping[str, nn.Module]) -> None:
        """Raise UserError for an LSTM with scales that its integer kernel does not take."""
        has_kernel = self.granularity == "tensor" or (self.granularity == "channel" and self.symmetric)
        names = [name for name, layer in layers.items() if isinstance(layer, BiLSTM)]
        if names and not has_kernel:
            raise UserError(
                f"An LSTM in integers takes granularity=tensor, or channel with symmetric=true; skip={names[0]} leaves "
                "it in floats."
            )
