"""The registry of methods. A new one is its file and its line here; nothing else names it.

The values are `module:class`, so that listing the names imports none of them. Installed packages bring more by entry
points of the group `compression.methods`, each named `<family>.<name>`.
"""

from __future__ import annotations

import itertools
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compression import params
from compression.errors import UserError
from compression.methods.recipe import numbered, written
from compression.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.methods.base import Method
    from compression.tasks.task import Task

FAMILIES = {
    "train": "train the model itself",
    "distill": "train a student on a teacher's outputs or layers",
    "prune": "remove the least important weights, channels, heads or layers",
    "quantize": "store weights and activations in few bits",
    "decompose": "factorize layers into smaller ones",
}

_OWN = {
    "finetune": "train.finetune:Finetune",
    "response": "distill.response:Response",
    "decoupled": "distill.decoupled:Decoupled",
    "multi_teacher": "distill.multi_teacher:MultiTeacher",
    "self_distill": "distill.self_distill:SelfDistillation",
    "mutual": "distill.mutual:Mutual",
    "feature": "distill.feature:Feature",
    "attention": "distill.attention:Attention",
    "relational": "distill.relational:Relational",
    "layerwise": "distill.layerwise:Layerwise",
    "progressive": "distill.progressive:Progressive",
    "magnitude": "prune.magnitude:Magnitude",
    "ln_structured": "prune.ln_structured:LnStructured",
    "structured": "prune.structured:Structured",
    "drop_layers": "prune.drop_layers:DropLayers",
    "snip": "prune.snip:Snip",
    "grasp": "prune.grasp:Grasp",
    "obd": "prune.obd:Obd",
    "wanda": "prune.wanda:Wanda",
    "sparsegpt": "prune.sparsegpt:SparseGpt",
    "movement": "prune.movement:Movement",
    "block_movement": "prune.block_movement:BlockMovement",
    "l0": "prune.l0:L0",
    "qat": "quantize.qat:Qat",
    "lsq": "quantize.lsq:Lsq",
    "dorefa": "quantize.dorefa:Dorefa",
    "bnn": "quantize.bnn:Bnn",
    "dynamic": "quantize.dynamic:Dynamic",
    "static": "quantize.static:Static",
    "weight_only": "quantize.weight_only:WeightOnly",
    "gptq": "quantize.gptq:Gptq",
    "awq": "quantize.awq:Awq",
    "smoothquant": "quantize.smoothquant:SmoothQuant",
    "mixed": "quantize.mixed:Mixed",
    "half": "quantize.half:HalfPrecision",
    "cluster": "quantize.cluster:Cluster",
    "svd": "decompose.svd:Svd",
    "tucker": "decompose.tucker:Tucker",
    "cp": "decompose.cp:Cp",
}
METHODS = Registry(
    "method", {name: f"{__name__}.{place}" for name, place in _OWN.items()}, "compression.methods", FAMILIES
)


def family(name: str) -> str:
    """The family of a method: the folder of its file, or the one that its package names."""
    return _OWN[name].partition(".")[0] if name in _OWN else METHODS.kind(name)


def of_family(wanted: str) -> list[str]:
    """The names of the methods of a family."""
    return [name for name in METHODS if family(name) == wanted]


def method(name: str) -> type[Method]:
    """The class of a method; UserError listing the names for one that does not exist."""
    if name not in METHODS:
        raise METHODS.unknown(name)
    found: type[Method] = METHODS.load(name)
    if name not in _OWN and getattr(found, "family", "") != family(name):
        raise UserError(f"The method {name!r} ({METHODS[name]}) has to be a Method with family = {family(name)!r}.")
    return found


def class_names() -> dict[str, str]:
    """The names of the methods' classes, each with the name of its method: Structured -> structured."""
    return {place.partition(":")[2]: name for name, place in METHODS.items()}


def name_of(step: Method) -> str:
    """The name under which the class of `step` is registered."""
    cls = type(step)
    place = f"{cls.__module__}:{cls.__qualname__}"
    return next(name for name, known in METHODS.items() if known == place or _is_brought(name, cls))


def _is_brought(name: str, cls: type[Method]) -> bool:
    """Whether `name` is that of `cls` in the package that brings it, which may define it in another module."""
    return (
        name not in _OWN and METHODS[name].partition(".")[0] == cls.__module__.partition(".")[0] and method(name) is cls
    )


def labels(steps: Sequence[Method]) -> list[str]:
    """A unique label for each step of a chain: the method's name, numbered from its second occurrence on."""
    return numbered([name_of(step) for step in steps])


def parse(recipe: str) -> tuple[Method, ...]:
    """Parse a chain: `structured:sparsity=0.5+response:temperature=4`, or `@` and a YAML file's path."""
    return tuple(build(name, given) for name, given in written(recipe))


def build(name: str, given: Mapping[str, Any]) -> Method:
    """The method `name` with the fields that `given` has: as texts, or as YAML has them."""
    built: Method = params.build(method(name), given, f"The method {name!r}")
    return built


def text(steps: Sequence[Method], brief: bool = False) -> str:
    """The chain as `parse` reads it, with the fields that are not at their defaults (`brief`: the names alone)."""
    return "+".join(map(name_of if brief else _text, steps))


def _text(step: Method) -> str:
    given = [f"{name}={text}" for name, text in params.texts(step, changed=True).items()]
    return ":".join(filter(None, [name_of(step), ",".join(given)]))


def check_order(steps: Sequence[Method]) -> None:
    """Raise UserError where a step comes after a terminal one."""
    for earlier, later in itertools.pairwise(steps):
        if earlier.terminal:
            raise UserError(
                f"{name_of(later)} works on weights in floats, and {name_of(earlier)} leaves none: "
                f"put {name_of(later)} first."
            )


def check_task(steps: Sequence[Method], task: Task) -> None:
    """Raise UserError if a step needs another kind of model than the task has, or undoes the steps before it."""
    for step in steps[1:]:
        if step.reinitializes and task.takes_images:  # a transformer goes back to the weights that it came with
            raise UserError(f"{name_of(step)} goes back to untrained weights here: it must be the first step.")
    for step in steps:
        if step.requires == "text" and task.takes_images:
            raise UserError(f"{name_of(step)} works on transformers alone, and {task.name} has images.")


class _Registry(ModuleType):
    """The package itself, which can be called: `compression.methods()`."""

    def __call__(self) -> dict[str, type[Method]]:
        """All methods by name; each is a dataclass whose fields are its options."""
        return {name: method(name) for name in METHODS}


sys.modules[__name__].__class__ = _Registry
