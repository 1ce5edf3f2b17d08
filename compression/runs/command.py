"""The command that repeats a run, written from the fields that it is parsed into."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from compression import methods, params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.methods.base import Method
    from compression.runs.settings import Settings


def words(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> list[str]:
    """The arguments of `compression`: a single method by its family, several as a chain."""
    if stage == "compress" and len(steps) == 1:
        [step] = steps
        return [step.family, methods.name_of(step), *options(step), *options(settings)]
    if stage == "compress":
        return ["compress", methods.text(steps), *options(settings)]
    return [stage, *(word for step in steps for word in options(step)), *options(settings)]


def options(instance: Any) -> list[str]:
    """`--name value` for every field that is not at its default."""
    given = params.texts(instance, changed=True)
    return [word for name, text in given.items() for word in (f"--{name.replace('_', '-')}", text)]


def project_line(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> str:
    """The command as an MLflow Project: `mlflow run . -e distill -P method=response -P task=…`."""
    if stage == "compress" and len(steps) == 1:
        entry, first = steps[0].family, [f"method={methods.name_of(steps[0])}"]
    else:
        entry, first = stage, [f"recipe={methods.text(steps)}"] if stage == "compress" else []
    # Without the words that -e and the first -P stand for.
    given = words(settings, stage, steps)[2 if first else 1 :]
    pairs = [f"{name[2:].replace('-', '_')}={value}" for name, value in zip(given[::2], given[1::2], strict=True)]
    return shlex.join(["mlflow", "run", ".", "-e", entry, *(word for pair in first + pairs for word in ("-P", pair))])


def line(settings: Settings, stage: str, steps: Sequence[Method] = ()) -> str:
    """The command as one line for a shell: `compression distill response --task …`."""
    return shlex.join(["compression", *words(settings, stage, steps)])
