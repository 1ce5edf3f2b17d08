"""The inputs of models: one tensor of images, or named tensors of tokenized text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs = Tensor | dict[str, Tensor]


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply `function` to the tensor, or to each tensor of the dict."""
    if isinstance(inputs, dict):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)


def attention_mask(inputs: Inputs) -> Tensor | None:
    """Return the mask `(batch, length)` of a batch of texts, bool, False for padding; None for other inputs.

    Texts that come without a mask have no padding: all of their tokens count.
    """
    if not isinstance(inputs, dict):
        return None
    if "attention_mask" in inputs:
        return inputs["attention_mask"].bool()
    tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return None if tokens is None else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the model's logits `(batch, outputs)`, for images as one tensor or text as named tensors.

    A model returns them as they are, under the name `logits`, or as the first of several outputs. Raises UserError if
    it does neither.
    """
    outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    logits = outputs
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        logits = outputs.logits
    elif isinstance(outputs, (tuple, list)) and outputs:
        logits = outputs[0]
    if not isinstance(logits, Tensor):
        raise UserError(
            f"{type(model).__name__} returns a {type(outputs).__name__} without logits: a model has to return them as "
            "a tensor, under the name logits, or as the first of several outputs."
        )
    return logits
