"""The search space of tuning: the fields that a recipe leaves out, over their default or narrower ranges."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compression import methods, params
from compression.errors import UserError
from compression.methods.recipe import numbered, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Trial

    from compression.methods.base import Method
    from compression.params import Field

GRID_POINTS = 5  # that a grid takes of a range of floats


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
    ranges: Mapping[str, Range]  # label.field -> range

    def suggest_steps(self, trial: Trial) -> list[Method]:
        """Return the steps with the values that Optuna suggests."""
        return self.fill({name: values.suggest(trial, name) for name, values in self.ranges.items()})

    def fill(self, values: Mapping[str, Any]) -> list[Method]:
        """Return the steps with `values`: label.field -> value, as Optuna stores it."""
        return [
            replace(step, **{field: self._parse(f"{label}.{field}", values) for field in self.searched_fields(label)})
            for label, step in zip(self.labels, self.steps, strict=True)
        ]

    def _parse(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the field's value; Optuna stores scalars only, so lists and mappings are parsed from text."""
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


def space(recipe: str, narrowed: Mapping[str, str]) -> Space:
    """The space of a recipe, `narrowed` as in TuningConfig.space; UserError where there is nothing to search."""
    parts = written(recipe)
    labels = tuple(numbered([name for name, _ in parts]))
    steps = tuple(methods.build(name, texts) for name, texts in parts)
    given = _narrowed(narrowed, dict(zip(labels, parts, strict=True)))
    ranges: dict[str, Range] = {}
    for label, step, (name, texts) in zip(labels, steps, parts, strict=True):
        fields = params.fields(methods.method(name))
        wanted = {n: given[f"{label}.{n}"] for n in fields if f"{label}.{n}" in given}
        own = {n: _default_range(f) for n, f in fields.items() if f.param.search and n not in texts and n not in wanted}
        unused = _inactive_fields(step, own | wanted)
        kept = {n: found for n, found in own.items() if n not in unused} | wanted
        ranges |= {f"{label}.{n}": kept[n] for n in fields if n in kept}
    if not ranges:
        raise UserError(f"{recipe} leaves nothing to search: leave a field out, or name one in space=step.field=a/b.")
    return Space(labels, steps, ranges)


def _inactive_fields(step: Method, ranges: Mapping[str, Range]) -> frozenset[str]:
    """Return the fields that have no effect, whatever values the text fields in `ranges` will take."""
    texts = {name: values.choices for name, values in ranges.items() if values.field.type is str}
    inactive = []
    for combination in itertools.product(*texts.values()):
        with contextlib.suppress(UserError):  # invalid combinations are reported by the trial that tries one
            inactive.append(replace(step, **dict(zip(texts, combination, strict=True))).inactive())
    return frozenset.intersection(*inactive) if inactive else frozenset()


def _default_range(field: Field) -> Range:
    """Return the range that the field declares."""
    search: Sequence[Any] = field.param.search or ()
    if isinstance(search[0], str):
        return Range(field, choices=tuple(search))
    return Range(field, *search)


def _narrowed(given: Mapping[str, str], parts: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Range]:
    """The ranges that are `given` for step.field, by step.field."""
    found = {}
    for key, text in given.items():
        label, _, name = key.partition(".")
        if label not in parts:
            steps = ", ".join(parts)
            raise UserError(f"The space {f'{key}={text}'!r} is written step.field=low..high; the steps are {steps}.")
        method, texts = parts[label]
        known = params.fields(methods.method(method))
        if name not in known:
            raise UserError(f"{label} has no field {name!r}; it has {', '.join(known)}.")
        if name in texts:
            raise UserError(f"{key} is fixed in the recipe ({name}={texts[name]}) and searched in the space.")
        found[key] = _read(known[name], text)
    return found


def _read(field: Field, text: str) -> Range:
    low, dots, high = text.partition("..")
    if not dots:
        values = params.items(text, slashes=bool(field.kind.container))
        parsed = [field.parse(value) for value in values]
        # Optuna stores scalars: a list or mapping is suggested as its text.
        return Range(field, choices=tuple(map(field.text, parsed) if field.kind.container else parsed))
    if field.type not in (int, float):
        raise UserError(f"{field.name} is no number and has no range; give its values: {field.name}=a/b.")
    ends = field.parse(low), field.parse(high)
    if ends[0] >= ends[1]:
        raise UserError(f"The range {text} of {field.name} ends before it begins.")
    return Range(field, *ends)
