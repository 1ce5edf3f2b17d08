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
IGNORED = -100  # the target of what is no answer, such as padding: torch's losses leave it out, too


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


def answers(model: nn.Module, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits `(answers, outputs)` that a model is trained and judged by, and the target of each.

    They are those of each example of the batch or, where examples have a target for each token, of each token that has
    one. Raises UserError as `forward` does.
    """
    return answer_rows(forward(model, inputs), targets)


def answer_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets of `answers`, from logits of the shape of `targets` and `outputs`."""
    if targets.ndim == 1:
        return logits, targets
    has_target = targets != IGNORED
    return logits[has_target], targets[has_target]


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the model's logits, for images as one tensor or text as named tensors.

    They are `(batch, outputs)`, of a language model `(batch, length, outputs)`.

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
