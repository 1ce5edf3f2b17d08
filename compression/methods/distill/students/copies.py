"""Students cut from their teacher: thinner and shallower copies."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from compression import models
from compression.errors import UserError
from compression.models import storage
from compression.models.resnet import BasicBlock
from compression.nn import transformer


def thinner(teacher: nn.Module, width: float) -> nn.Module:
    """The architecture of `teacher` with `width` times its channels, untrained; UserError where it has no width."""
    spec = models.spec_of(teacher)
    arguments = spec.get("arguments", {})
    if "width" not in arguments:
        raise UserError(
            f"width={width:.2g} makes thinner copies of the lab's own networks, and a {type(teacher).__name__} is "
            "none; name a model in its place, or take a shallower copy by its number of layers."
        )
    if storage.reshaped(teacher):
        raise UserError(
            f"width={width:.2g} makes thinner copies of networks as they were built, and compression changed the "
            "teacher's layers; name a model in its place."
        )
    return models.rebuild(spec | {"arguments": arguments | {"width": arguments["width"] * width}})


def shallower(teacher: nn.Module, count: int) -> nn.Module:
    """A copy of `teacher`, weights and all, with `count` of its layers (blocks of a residual network), evenly spread.

    DistilBERT's start: Sanh et al. 2019, arXiv:1910.01108, section 3. UserError where it has not so many.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    if not transformer.is_transformer(student):
        return keep_blocks(student, count)
    total = len(transformer.layers(student))
    if count > total:
        raise UserError(f"layers={count} is more than the {total} layers of the teacher; take fewer.")
    require_whole(student)
    transformer.keep_layers(student, evenly(total, count))
    return student


def require_whole(teacher: nn.Module) -> None:
    """UserError for a transformer whose layers are no plain ones: a config could not say what its copy has."""
    parts = transformer.names(teacher)
    for layer in transformer.layers(teacher):
        if not all(isinstance(layer.get_submodule(part), nn.Linear) for part in (parts.query, parts.up)):
            raise UserError(
                "A shallower copy is made of plain linear layers, and the teacher's were decomposed or quantized; "
                "name a student=, or distil first."
            )


def keep_blocks(model: Any, count: int) -> nn.Module:
    """Keep `count` blocks of a residual network, as many in each stage; the first of a stage changes the shape."""
    stages = [s for s in getattr(model, "stages", []) if all(isinstance(block, BasicBlock) for block in s)]
    if not stages:
        raise UserError(
            f"layers={count} drops layers of transformers and of the lab's residual networks, and a "
            f"{type(model).__name__} is neither; name a student=, or make a thinner copy with width=."
        )
    each, rest = divmod(count, len(stages))
    if rest or each > min(map(len, stages)):
        most = len(stages) * min(map(len, stages))
        raise UserError(f"layers={count}: the teacher has {len(stages)} stages; take a multiple of it, {most} at most.")
    for stage in stages:
        kept = {0, *(1 + i for i in evenly(len(stage) - 1, each - 1))}
        for i in reversed(range(len(stage))):
            if i not in kept:
                del stage[i]
    return model


def evenly(total: int, count: int) -> list[int]:
    """`count` of the indices below `total`, evenly spread, the last among them: 2, 5, 8 and 11 for 4 of 12.

    The mapping of TinyBERT: Jiao et al. 2020, arXiv:1909.10351, section 4.1.
    """
    return [(i + 1) * total // count - 1 for i in range(count)]
