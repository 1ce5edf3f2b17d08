"""Dynamic quantization: weights in integers ahead of time, activations when they come."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.context import Context
from compression.methods.quantize.scheme import Scheme
from compression.quantized import DYNAMIC, QuantEmbedding, QuantLinear


@dataclass(frozen=True)
class Dynamic(Scheme):
    """Weights of linear layers and embeddings in integers; each input of a linear layer by its own range, in 8 bits.

    As torch's quantize_dynamic does it, but for recurrent layers (LSTM), which no model of the lab has. A range is that
    of a whole batch, so answers depend a little on who else is in it. Nothing is calibrated.
    """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self.layers(model, nn.Linear, nn.Embedding)
        if recurrent := [name for name, m in model.named_modules() if isinstance(m, nn.RNNBase)]:
            context.record.warn(f"Recurrent layers stay in floats: {', '.join(recurrent)}.")
        context.record.figure("weight-ranges", self.weight_picture(model, list(layers), 8))
        for name, layer in layers.items():
            if isinstance(layer, nn.Linear):
                made: nn.Module = QuantLinear.from_float(layer, self.weight_numbers(layer, 8), DYNAMIC)
            else:
                made = QuantEmbedding.from_float(layer, self.weight_numbers(layer, None))  # type: ignore[arg-type]
            model.set_submodule(name, made)
        return model
