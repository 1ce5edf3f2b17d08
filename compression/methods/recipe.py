"""The grammar of chains: `name:field=value,field=value+name`, and the same as YAML."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

Written = list[tuple[str, dict[str, Any]]]  # (method, field -> text, or value of YAML) of every step
SHAPE = "a recipe file is a list of steps, `- static` or `- structured: {sparsity: 0.5}`"


def written(recipe: str) -> Written:
    """The methods and given fields of a recipe's steps; the recipe is a text, or `@` and the path of a YAML file."""
    if recipe.startswith("@"):
        return _listed(Path(recipe[1:]))
    return [_step(part.strip()) for part in recipe.split("+")]


def _step(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(
                f"{key!r} in the step {text!r} has no value; a step is written name:field=value,field=value."
            )
    return name.strip(), {key.strip(): value for key, _, value in pairs}


def _listed(path: Path) -> Written:
    import yaml

    try:
        steps = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The recipe {path} cannot be read: {first_line(error)}") from error
    if not isinstance(steps, list) or not steps:
        raise UserError(f"{path} holds no steps; {SHAPE}.")
    return [_entry(step, path) for step in steps]


def _entry(step: Any, path: Path) -> tuple[str, dict[str, Any]]:
    if isinstance(step, str):
        return step, {}
    if isinstance(step, dict) and len(step) == 1:
        [(name, given)] = step.items()
        fields = {} if given is None else given
        if isinstance(fields, dict):
            return str(name), {str(field): value for field, value in fields.items()}
    raise UserError(f"{path} holds {step!r}, which is no step; {SHAPE}.")


def numbered(names: Sequence[str]) -> list[str]:
    """Number repeated names from the second occurrence on: finetune, structured, finetune_2."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
