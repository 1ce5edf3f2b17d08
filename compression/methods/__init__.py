"""The methods, by name. A new one is its file and its line here; nothing else knows it.

The values are `module:class`, so that listing the names imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from compression import params
from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.methods.base import Method

FAMILIES = {
    "train": "train the model itself",
    "distill": "train a student on what a teacher knows",
    "prune": "take away the weights, channels, heads or layers that matter least",
    "quantize": "keep weights and activations in few bits",
}

METHODS = {
    "finetune": "train.finetune:Finetune",
    "response": "distill.response:Response",
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
    "mixed": "quantize.mixed:Mixed",
    "half": "quantize.half:HalfPrecision",
    "cluster": "quantize.cluster:Cluster",
}


def family(name: str) -> str:
    """The family of a method, from where its file stands."""
    return METHODS[name].partition(".")[0]


def of_family(wanted: str) -> list[str]:
    return [name for name in METHODS if family(name) == wanted]


def method(name: str) -> type[Method]:
    """The class of a method; UserError listing the names for one that does not exist."""
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; there are {', '.join(METHODS)}.")
    module, _, cls = METHODS[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)


def name_of(step: Method) -> str:
    """The name under which the class of `step` is registered."""
    return next(n for n in METHODS if type(step) is method(n))


def parse(text: str) -> tuple[Method, ...]:
    """The steps of a chain, `structured:sparsity=0.5+response:temperature=4`."""
    return tuple(_step(part.strip()) for part in text.split("+"))


def _step(text: str) -> Method:
    name, _, rest = text.partition(":")
    cls = method(name)
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(
                f"{key!r} in the step {text!r} has no value; a step is written name:field=value,field=value."
            )
    return params.from_text(cls, {key.strip(): value for key, _, value in pairs}, f"The method {name!r}")


def text(steps: Sequence[Method], brief: bool = False) -> str:
    """The chain as `parse` reads it, with the fields that are not at their defaults (`brief`: the names alone)."""
    return "+".join(map(name_of if brief else _text, steps))


def _text(step: Method) -> str:
    known = params.fields(type(step))
    said = [f"{n}={v}" for n, v in params.values(step).items() if v != known[n].default]
    return ":".join(filter(None, [name_of(step), ",".join(said)]))


def check_order(steps: Sequence[Method]) -> None:
    """UserError where a step trains after one that sealed the model."""
    for earlier, later in ((a, b) for i, a in enumerate(steps) for b in steps[i + 1 :]):
        if earlier.seals and later.trains:
            raise UserError(
                f"{name_of(later)} trains, which it cannot after {name_of(earlier)}: put {name_of(later)} first."
            )
