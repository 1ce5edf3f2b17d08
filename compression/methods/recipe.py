"""The grammar of chains: `name:field=value,field=value+name`, and the same as YAML."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.errors import UserError, first_line, quoted
from compression.files import MAX_YAML_BYTES, parse_yaml, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

Written = list[tuple[str, dict[str, Any]]]  # (method, field -> text, or value of YAML) of every step
MAX_STEPS = 100
SHAPE = "a recipe file is a list of steps, `- static` or `- structured: {sparsity: 0.5}`"


def written(recipe: str) -> Written:
    """The methods and given fields of a recipe's steps; the recipe is a text, or `@` and the path of a YAML file.

    Raises UserError if it is neither, or has more than MAX_STEPS.
    """
    if recipe.startswith("@"):
        path = Path(recipe[1:])
        return [_entry(step, path) for step in _few(_listed(path), recipe)]
    return [_step(part.strip()) for part in _few(recipe.split("+"), recipe)]


def _few(steps: list[Any], recipe: str) -> list[Any]:
    """The steps, if there are not too many: 2,000 would take a minute to check before the first is applied."""
    if len(steps) > MAX_STEPS:
        raise UserError(f"{quoted(recipe)} has {len(steps):,} steps; a recipe takes {MAX_STEPS} at most.")
    return steps


def _step(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    for key, equals, _ in pairs:
        if not equals:
            step = f"the step {quoted(text)}"
            raise UserError(f"{quoted(key)} in {step} has no value; a step is written name:field=value,field=value.")
    return name.strip(), {key.strip(): value for key, _, value in pairs}


def _listed(path: Path) -> list[Any]:
    try:
        steps = parse_yaml(read_text(path, MAX_YAML_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"The recipe {path} cannot be read: {first_line(error)}") from error
    if not isinstance(steps, list) or not steps:
        raise UserError(f"{path} holds no steps; {SHAPE}.")
    return steps


def _entry(step: Any, path: Path) -> tuple[str, dict[str, Any]]:
    if isinstance(step, str):
        return step, {}
    if isinstance(step, dict) and len(step) == 1:
        [(name, given)] = step.items()
        fields = {} if given is None else given
        if isinstance(fields, dict):
            return str(name), {str(field): value for field, value in fields.items()}
    raise UserError(f"{path} holds {quoted(step)}, which is no step; {SHAPE}.")


def numbered(names: Sequence[str]) -> list[str]:
    """Number repeated names from the second occurrence on: finetune, structured, finetune_2."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
