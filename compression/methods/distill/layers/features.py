"""What layers give while a model answers: which layers are compared, and their outputs of one forward pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.students.copies import evenly
from compression.nn import transformer
from compression.nn.inputs import Inputs, forward, map_inputs
from compression.training.context import Context

LISTED = 40  # layers that a refusal names at most
Pairs = list[tuple[str, str]]  # (a layer of the teacher, the layer of the student that is to be like it)


@contextlib.contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the layers `names`, by name, of a forward pass within; no hook outlives the block."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, given: Any, output: Any) -> None:
        seen[name] = output if isinstance(output, Tensor) else output[0]

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def sample(model: nn.Module, names: Iterable[str], context: Context) -> dict[str, Tensor]:
    """What the layers give for two test inputs: their shapes tell what fits between them."""
    inputs = map_inputs(lambda tensor: tensor.to(context.device), context.task.example(2))
    with captured(model.to(context.device).eval(), names) as seen:
        forward(model, inputs)
    return seen


def there(inputs: Inputs) -> Tensor | None:
    """Which tokens are no padding, bool `(batch, length)`; None for images."""
    return inputs["attention_mask"].bool() if isinstance(inputs, dict) else None


def layer_pairs(named: Sequence[tuple[str, str]], teacher: nn.Module, student: nn.Module) -> Pairs:
    """The pairs `named`, or the stages of both, evenly spread, where there are none.

    UserError for a layer that does not exist, with the names of those that do.
    """
    if named:
        require("teacher", teacher, [one for one, _ in named])
        require("student", student, [other for _, other in named])
        return list(named)
    theirs, ours = stages(teacher), stages(student)
    count = min(len(theirs), len(ours))
    return [(theirs[i], ours[j]) for i, j in zip(evenly(len(theirs), count), evenly(len(ours), count), strict=True)]


def stages(model: nn.Module) -> list[str]:
    """The layers of a transformer, or those of a CNN after which the images shrink: its stages, or its poolings."""
    if transformer.is_transformer(model):
        names = {id(module): name for name, module in model.named_modules()}
        return [names[id(layer)] for layer in transformer.layers(model)]
    found = [name for name, _ in model.named_modules() if re.fullmatch(r"stages\.\d+|layer\d+", name)]
    found = found or [name for name, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    if not found:
        raise UserError(
            f"A {type(model).__name__} has no stages that could be compared; name layers, pairs=TEACHERS:STUDENTS; "
            f"it has {listed(model)}."
        )
    return found


def require(whose: str, model: nn.Module, names: Iterable[str]) -> None:
    """UserError for the first of `names` that is no layer of the model."""
    known = dict(model.named_modules())
    for name in names:
        if not name or name not in known:
            raise UserError(f"The {whose} has no layer {name!r}; it has {listed(model)}.")


def listed(model: nn.Module) -> str:
    """Its layers by name, the outer ones first."""
    names = sorted((name for name, _ in model.named_modules() if name), key=lambda name: name.count("."))
    more = f" and {len(names) - LISTED} within them" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
