"""Weight-only quantization: small files and little memory traffic, arithmetic in floats."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.methods.quantize.calibration.scheme import Scheme
from compression.nn.quantized import QuantEmbedding, QuantLinear
from compression.nn.recurrent import Gates
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class WeightOnly(Scheme):
    """Weights of linear layers, LSTMs and embeddings rounded to the nearest of a few bits; activations stay.

    Four bits in groups of 16, 32, 64 … run on a kernel that reads the small weights (MatMulNBits); the others are small
    in the file and become floats when it is loaded.
    """

    bits: int = param(4, "bits of a weight", interval="[1, 8]", search=(2, 8))
    granularity: str = param(
        "group", "weights that share a scale", choices=("tensor", "channel", "group"), search=("channel", "group")
    )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self.layers(model, nn.Linear, Gates, nn.Embedding)
        self.draw_weights(model, list(layers), None, context.record)
        for name, layer in layers.items():
            cls = QuantLinear if isinstance(layer, nn.Linear) else QuantEmbedding
            model.set_submodule(name, cls.from_float(layer, self.weight_numbers(layer, None)))  # type: ignore[arg-type]
        return model
