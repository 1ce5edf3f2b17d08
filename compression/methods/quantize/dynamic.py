"""Dynamic quantization: weights in integers ahead of time, activations when they come."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.errors import UserError
from compression.methods.quantize.calibration.scheme import Scheme
from compression.methods.quantize.calibration.selection import tell_recurrent
from compression.nn.quantized import DYNAMIC, QuantEmbedding, QuantLinear
from compression.nn.recurrent import BiLSTM
from compression.training.context import Context


@dataclass(frozen=True)
class Dynamic(Scheme):
    """Weights of linear layers, LSTMs and embeddings in integers; what goes into a layer by its own range, in 8 bits.

    As torch's quantize_dynamic does it. A range is that of a whole batch, and in an LSTM those of all inputs and of the
    last state at each step, so answers depend a little on who else is in it. Nothing is calibrated.
    """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self.layers(model, nn.Linear, nn.Embedding, BiLSTM)
        self.require_kernel(layers)
        for name in [name for name, layer in layers.items() if isinstance(layer, BiLSTM)]:
            held = layers.pop(name)
            layers |= {
                f"{name}.{below}": gates for below, gates in held.named_modules() if isinstance(gates, nn.Linear)
            }
        self.draw_weights(model, list(layers), 8, context.record)
        for name, layer in layers.items():
            if isinstance(layer, nn.Linear):
                made: nn.Module = QuantLinear.from_float(layer, self.weight_numbers(layer, 8), DYNAMIC)
            else:
                made = QuantEmbedding.from_float(layer, self.weight_numbers(layer, None))  # type: ignore[arg-type]
            model.set_submodule(name, made)
        tell_recurrent(model, context.record)
        return model

    def require_kernel(self, layers: dict[str, nn.Module]) -> None:
        """UserError for an LSTM in numbers that its integer kernel does not take."""
        names = [name for name, layer in layers.items() if isinstance(layer, BiLSTM)]
        known = self.granularity == "tensor" or self.granularity == "channel" and self.symmetric
        if names and not known:
            raise UserError(
                f"An LSTM in integers takes granularity=tensor, or channel with symmetric=true; skip={names[0]} leaves "
                "it in floats."
            )
