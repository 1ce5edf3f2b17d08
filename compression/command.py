"""The command line that repeats a run, written from the same fields that it is read into."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from compression import methods, params
from compression.methods.base import Method
from compression.settings import Settings


def words(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> list[str]:
    """The words after `compression`: a single method by its family, several as a chain."""
    if stage == "compress" and len(steps) == 1:
        [step] = steps
        return [step.family, methods.name_of(step), *options(step), *options(settings)]
    if stage == "compress":
        return ["compress", methods.text(steps), *options(settings)]
    return [stage, *(word for step in steps for word in options(step)), *options(settings)]


def options(instance: Any) -> list[str]:
    """`--name value` for every field that is not at its default."""
    known = params.fields(type(instance))
    said = [(n, v) for n, v in params.values(instance).items() if v != known[n].default]
    return [word for name, value in said for word in (f"--{name.replace('_', '-')}", str(value))]


def line(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> str:
    return shlex.join(["compression", *words(settings, stage, steps)])
