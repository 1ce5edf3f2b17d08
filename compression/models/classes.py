"""Classes are matched by their names: a model's outputs, the labels of a file, and folders with those of a task."""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from typing import TYPE_CHECKING

import torch

from compression.errors import UserError
from compression.nn.inputs import forward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.models import TaskInterface
    from compression.nn.inputs import Inputs

log = logging.getLogger(__name__)

_NUMBERED = re.compile(r"(?:labels?|class(?:es)?|category)?[\W_]*(\d+)", re.IGNORECASE)


def folded(name: str) -> str:
    """Return a name in a form that is the same whatever its case, its accents' encoding, and blanks around it."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def name_key(name: str) -> str:
    """Return what counts of a class name in comparisons: letters and digits; a number keeps its sign and its point."""
    text = folded(name)
    # A name of signs alone would leave nothing to compare.
    return text if re.fullmatch(r"[-+]?[\d.]+", text) else re.sub(r"[\W_]+", "", text) or text


def match_names(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Return the place in `names` of each of `labels`; None if the two do not name the same classes.

    Compares whole names, and if they differ, their keys: `NOT ENTAILMENT` is `not_entailment`.
    """
    # The strictest first: C, C++ and C# have one key, but differ as they are.
    for key in (str, folded, name_key):
        places = {key(name): place for place, name in enumerate(names)}
        wanted = [key(label) for label in labels]
        if len(places) == len(names) == len(set(wanted)) and places.keys() == set(wanted):
            return [places[label] for label in wanted]
    return None


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """Return the numbers in names that say nothing else, `LABEL_0` or `1`; None if one says more, or two are equal."""
    found = [_NUMBERED.fullmatch(name.strip()) for name in names]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(names) else None


def output_order(names: Sequence[str], labels: Sequence[str]) -> tuple[list[int] | None, bool]:
    """Return which of a model's outputs, called `names`, is each of `labels`, and whether their names say so.

    Where one side has numbers only, `LABEL_0`, the order of the numbers is all there is. None stands for names that do
    not match.
    """
    if len(names) != len(labels):
        return None, False
    if (order := match_names(names, labels)) is not None:
        return order, True
    numbers = class_numbers(names)
    if numbers is None and class_numbers(labels) is None:
        return None, False
    return sorted(range(len(names)), key=(numbers or list(range(len(names)))).__getitem__), False


def match_outputs(model: nn.Module, names: Sequence[str], task: TaskInterface, spec: str, inputs: Inputs) -> None:
    """Put the outputs of the trained model `spec`, called `names`, into the order of the task's labels, in place.

    `inputs` are any that the model takes. Raises UserError if the names do not match the labels, or if the outputs
    cannot be reordered.
    """
    order, is_named = output_order(names, task.labels)
    if order is None:
        raise UserError(
            f"{spec} tells {', '.join(names)} apart, and {task.name} has the classes {', '.join(task.labels)}: take a "
            f"model trained on {task.name}, or name the classes alike (id2label and label2id in a config.json)."
        )
    if not is_named:
        _tell_order(spec, tuple(names), task.name, task.labels)
    try:
        reorder_outputs(model.eval(), order, inputs)
    except ValueError as error:
        raise UserError(
            f"{spec} has the classes in the order {', '.join(names)}, {task.name} in the order "
            f"{', '.join(task.labels)}, and its outputs cannot be reordered: {error}."
        ) from error


@functools.cache
def _tell_order(spec: str, names: tuple[str, ...], task: str, labels: tuple[str, ...]) -> None:
    """Log, once, that outputs were matched with classes by their position."""
    log.warning(
        "%s calls its outputs %s: they are taken for the classes of %s in their order, %s.",
        *(spec, ", ".join(names), task, ", ".join(labels)),
    )


@torch.no_grad()
def reorder_outputs(model: nn.Module, order: Sequence[int], inputs: Inputs) -> None:
    """Give `model` its outputs in another order, in place: output k becomes what output `order[k]` was.

    Permutes the rows of the layer that makes the logits: the last one for which that permutes the logits for `inputs`.
    Raises ValueError if there is none.
    """
    if list(order) == list(range(len(order))):
        return
    expected = forward(model, inputs)[:, list(order)]
    back = sorted(range(len(order)), key=order.__getitem__)
    # Tried on `inputs`, for the last layer that was registered need not be the last that runs.
    for layer in reversed([module for module in model.modules() if not list(module.children())]):
        _permute_rows(layer, order)
        if torch.allclose(forward(model, inputs), expected, rtol=1e-4, atol=1e-5):
            return
        _permute_rows(layer, back)
    raise ValueError("no single layer makes its logits")


def _permute_rows(layer: nn.Module, order: Sequence[int]) -> None:
    """Permute all tensors of a layer that have a row for each class."""
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.ndim and len(tensor) == len(order):
            tensor.copy_(tensor[list(order)].clone())
