"""The inputs of models: one tensor of images, or named tensors of tokenized text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs = Tensor | dict[str, Tensor]


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply `function` to the tensor, or to each tensor of the dict."""
    if isinstance(inputs, dict):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the model's logits `(batch, outputs)`, for images as one tensor or text as named tensors."""
    outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return logits
