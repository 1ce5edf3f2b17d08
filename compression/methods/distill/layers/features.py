"""Which layers of teacher and student are compared, and their outputs in a forward pass."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.distill.students.copies import evenly_spaced
from compression.nn import transformer
from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import forward, map_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from compression.training.context import Context

MOST_LISTED = 40  # layers that an error message lists
LayerPairs = list[tuple[str, str]]  # (a layer of the teacher, the layer of the student that is compared with it)


@contextlib.contextmanager
def record_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of the layers `names` in a forward pass within the block; of a tuple, the first element."""
    outputs: dict[str, Tensor] = {}

    def record(call: Call) -> None:
        # Not `output_tensor`: base models of transformers give dictionaries, whose [0] is the hidden states.
        outputs[call.name] = call.output if isinstance(call.output, Tensor) else call.output[0]

    with on_forward({name: model.get_submodule(name) for name in names}, record):
        yield outputs


@torch.no_grad()
def sample_outputs(model: nn.Module, names: Iterable[str], context: Context) -> dict[str, Tensor]:
    """The outputs of layers for two test inputs, as examples of their shapes."""
    inputs = map_inputs(lambda tensor: tensor.to(context.device), context.task.example(2))
    with record_outputs(model.to(context.device).eval(), names) as outputs:
        forward(model, inputs)
    return outputs


def resolve_layer_pairs(named: Sequence[tuple[str, str]], teacher: nn.Module, student: nn.Module) -> LayerPairs:
    """The pairs `named`; if there are none, the stages of both models, evenly spaced.

    Raises UserError for a layer that does not exist, with the names of those that do.
    """
    if named:
        require_layers("teacher", teacher, [of_teacher for of_teacher, _ in named])
        require_layers("student", student, [of_student for _, of_student in named])
        return list(named)
    of_teacher, of_student = stage_names(teacher), stage_names(student)
    count = min(len(of_teacher), len(of_student))
    indices = zip(evenly_spaced(len(of_teacher), count), evenly_spaced(len(of_student), count), strict=True)
    return [(of_teacher[i], of_student[j]) for i, j in indices]


def stage_names(model: nn.Module) -> list[str]:
    """The layers of a transformer, or the stages of a CNN; without stages, its max poolings.

    Raises UserError for a model that has none of these.
    """
    if transformer.is_transformer(model):
        names = {id(module): name for name, module in model.named_modules()}
        return [names[id(layer)] for layer in transformer.layers(model)]
    # the lab's residual networks; torchvision's
    found = [name for name, _ in model.named_modules() if re.fullmatch(r"stages\.\d+|layer\d+", name)]
    found = found or [name for name, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    if not found:
        raise UserError(
            f"A {type(model).__name__} has no stages that could be compared; name layers, pairs=TEACHERS:STUDENTS; "
            f"it has {layer_listing(model)}."
        )
    return found


def require_layers(role: str, model: nn.Module, names: Iterable[str]) -> None:
    """Raise UserError for the first of `names` that is no layer of the model; `role` is teacher or student."""
    layers = dict(model.named_modules())
    for name in names:
        if not name or name not in layers:
            raise UserError(f"The {role} has no layer {name!r}; it has {layer_listing(model)}.")


def layer_listing(model: nn.Module) -> str:
    """The names of the model's layers as part of a sentence, the outer ones first."""
    names = sorted((name for name, _ in model.named_modules() if name), key=lambda name: name.count("."))
    more = f" and {len(names) - MOST_LISTED} within them" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more
