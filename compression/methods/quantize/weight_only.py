"""Weight-only quantization: small files and little memory traffic, arithmetic in floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compression.methods.quantize.calibration.scheme import WeightQuantization
from compression.nn.graph import replace_module
from compression.nn.layers import weight
from compression.nn.quantized import QuantEmbedding, QuantLinear
from compression.nn.recurrent import Gates
from compression.params import param

if TYPE_CHECKING:
    from compression.training.context import Context


@dataclass(frozen=True)
class WeightOnly(WeightQuantization):
    """Round the weights of linear layers, LSTMs and embeddings to the nearest level; activations stay floats.

    Four bits in groups of 16, 32, 64 … run on a kernel that reads the packed weights (MatMulNBits); the others are
    small in the file and become floats when it is loaded.
    """

    bits: int = param(4, "bits of a weight", interval="[1, 8]", search=(2, 8))
    granularity: str = param(
        "group", "weights that share a scale", choices=("tensor", "channel", "group"), search=("channel", "group")
    )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantize in place; nothing is calibrated."""
        layers = self.select_layers(model, context.task.example(2), nn.Linear, Gates, nn.Embedding)
        self.log_weight_histograms(model, list(layers), None, context.record)
        for name, layer in layers.items():
            # None: products with floats cannot saturate, so that 8 bits use all codes -128..127.
            qparams = self.weight_qparams(weight(layer), None)
            if isinstance(layer, nn.Linear):
                replace_module(model, name, QuantLinear.from_float(layer, qparams))
            elif isinstance(layer, nn.Embedding):
                replace_module(model, name, QuantEmbedding.from_float(layer, qparams))
        return model
