"""The search space of tuning: the fields that a recipe leaves out, over their declared or given ranges."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compression import methods, params
from compression.errors import UserError
from compression.methods.recipe import numbered, written
from compression.tuning.config import split_range

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from optuna import Trial

    from compression.methods.base import Method
    from compression.params import Field

GRID_POINTS = 5  # of a range of floats in a grid


@dataclass(frozen=True)
class Range:
    """The values that a field may take: numbers from `low` to `high`, or one of `choices`."""

    field: Field
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial, name: str) -> Any:
        """Let Optuna suggest a value under `name`."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if self.field.type is int:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.is_log)
        return trial.suggest_float(name, self.low, self.high, log=self.is_log)

    @property
    def is_log(self) -> bool:
        """Whether the range is sampled on a logarithmic scale."""
        return self.field.param.log and self.low > 0

    def grid_values(self) -> list[Any]:
        """Return the values for a grid: all choices or integers, GRID_POINTS of a range of floats."""
        if self.choices:
            return list(self.choices)
        if self.field.type is int:
            return list(range(int(self.low), int(self.high) + 1))
        spread = np.geomspace if self.is_log else np.linspace
        return [float(value) for value in spread(self.low, self.high, GRID_POINTS)]

    @property
    def is_discrete(self) -> bool:
        """Whether two trials are likely to take the same value."""
        return bool(self.choices) or self.field.type is int

    def __str__(self) -> str:
        return "/".join(map(str, self.choices)) if self.choices else f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Space:
    """A recipe with open fields: the steps as far as they are given, and a range for every field left out."""

    labels: tuple[str, ...]  # of the steps: the method's name, with a number if it occurs again
    steps: tuple[Method, ...]
    ranges: Mapping[str, Range]  # label.field -> the values to search

    def suggest_steps(self, trial: Trial) -> list[Method]:
        """Return the steps with the values that Optuna suggests."""
        return self.fill({name: values.suggest(trial, name) for name, values in self.ranges.items()})

    def fill(self, values: Mapping[str, Any]) -> list[Method]:
        """Return the steps with `values`: label.field -> value, as Optuna stores it."""
        return [
            replace(
                step, **{field: self._parse_value(f"{label}.{field}", values) for field in self.searched_fields(label)}
            )
            for label, step in zip(self.labels, self.steps, strict=True)
        ]

    def _parse_value(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the value of the field `name` (label.field); Optuna stores lists and mappings as text."""
        field = self.ranges[name].field
        return field.parse(values[name]) if field.kind.container else values[name]

    def searched_fields(self, label: str) -> list[str]:
        """Return the names of the fields of a step that are searched."""
        return [name.partition(".")[2] for name in self.ranges if name.partition(".")[0] == label]

    def can_share(self, number: int) -> bool:
        """Whether trials are likely to have their first `number` steps in common, so that caching them pays."""
        names = [f"{label}.{field}" for label in self.labels[:number] for field in self.searched_fields(label)]
        return all(self.ranges[name].is_discrete for name in names)

    def grid_values(self) -> dict[str, list[Any]]:
        """Return the values of every searched field for a grid, by label.field."""
        return {name: values.grid_values() for name, values in self.ranges.items()}


def build_space(recipe: str, given: Mapping[str, str]) -> Space:
    """Return the search space of a recipe: the fields that it leaves out, over `given` ranges or those they declare.

    `given` maps step.field to `low..high` or `a/b`, as `TuningConfig.space` does. Raises UserError if the recipe or a
    range is invalid, or if there is nothing to search.
    """
    parts = written(recipe)
    labels = tuple(numbered([name for name, _ in parts]))
    steps = tuple(methods.build(name, fixed) for name, fixed in parts)
    given_ranges = _parse_ranges(given, dict(zip(labels, parts, strict=True)))
    ranges: dict[str, Range] = {}
    for label, step, (_, fixed) in zip(labels, steps, parts, strict=True):
        own = {name.removeprefix(f"{label}."): r for name, r in given_ranges.items() if name.startswith(f"{label}.")}
        ranges |= {f"{label}.{field}": values for field, values in _step_ranges(step, fixed, own).items()}
    if not ranges:
        raise UserError(f"{recipe} leaves nothing to search: leave a field out, or name one in space=step.field=a/b.")
    return Space(labels, steps, ranges)


def _step_ranges(step: Method, fixed: Collection[str], given: Mapping[str, Range]) -> dict[str, Range]:
    """Return the range of every searched field of a step, in the order of its fields.

    These are the fields with a `given` range, and those with a declared one that are not `fixed` and have an effect.
    """
    fields = params.fields(type(step))
    declared = {
        n: _declared_range(f) for n, f in fields.items() if f.param.search and n not in fixed and n not in given
    }
    inactive = _inactive_fields(step, {**declared, **given})
    searched = {**{n: values for n, values in declared.items() if n not in inactive}, **given}
    return {n: searched[n] for n in fields if n in searched}


def _inactive_fields(step: Method, ranges: Mapping[str, Range]) -> frozenset[str]:
    """Return the fields that have no effect, whichever of their choices the text fields in `ranges` take."""
    texts = {name: values.choices for name, values in ranges.items() if values.field.type is str}
    inactive = []
    for combination in itertools.product(*texts.values()):
        with contextlib.suppress(UserError):  # invalid combinations are reported by the trial that tries one
            inactive.append(replace(step, **dict(zip(texts, combination, strict=True))).inactive())
    return frozenset.intersection(*inactive) if inactive else frozenset()


def _declared_range(field: Field) -> Range:
    """Return the range that the field declares as `search`."""
    search: Sequence[Any] = field.param.search or ()
    if isinstance(search[0], str):
        return Range(field, choices=tuple(search))
    return Range(field, *search)


def _parse_ranges(given: Mapping[str, str], parts: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Range]:
    """Parse ranges by step.field; `parts` maps a step's label to its method and fixed fields.

    Raises UserError for an unknown step or field, for a fixed field, and for an invalid range.
    """
    ranges = {}
    for key, text in given.items():
        label, _, name = key.partition(".")
        if label not in parts:
            steps = ", ".join(parts)
            raise UserError(f"The space {f'{key}={text}'!r} is written step.field=low..high; the steps are {steps}.")
        method, fixed = parts[label]
        fields = params.fields(methods.method(method))
        if name not in fields:
            raise UserError(f"{label} has no field {name!r}; it has {', '.join(fields)}.")
        if name in fixed:
            raise UserError(f"{key} is fixed in the recipe ({name}={fixed[name]}) and searched in the space.")
        ranges[key] = _parse_range(fields[name], text)
    return ranges


def _parse_range(field: Field, text: str) -> Range:
    """Parse the range of a number, `low..high`, or the choices of any field, `a/b`, each written as in a recipe.

    Raises UserError if a value is invalid, if the field has no ranges, or if `low` is not below `high`.
    """
    try:
        low, high = split_range(text)
    except ValueError:
        return _parse_choices(field, text)
    if field.type not in (int, float):
        raise UserError(f"{field.name} is no number and has no range; give its values: {field.name}=a/b.")
    ends = field.parse(low), field.parse(high)
    if ends[0] >= ends[1]:
        raise UserError(f"The range {text} of {field.name} ends before it begins.")
    return Range(field, *ends)


def _parse_choices(field: Field, text: str) -> Range:
    """Parse `a/b`; between lists or mappings, which hold a / of their own, stands `//`."""
    is_container = bool(field.kind.container)
    choices = [field.parse(item) for item in params.items(text, slashes=is_container)]
    # Optuna stores scalars only, so a list or mapping is suggested as its text.
    return Range(field, choices=tuple(map(field.text, choices) if is_container else choices))
