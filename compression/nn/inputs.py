"""What models take and give: one tensor of images, or named tensors of a text; logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Inputs = Tensor | dict[str, Tensor]


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply `function` to the tensor, or to each tensor of the dict."""
    if isinstance(inputs, dict):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's logits `(batch, outputs)`: images go in as one tensor, text as named tensors."""
    outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits
