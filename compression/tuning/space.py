"""What a tuning searches: the fields of a recipe that were left out, over their own ranges or narrower ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna import Trial

from compression import methods, params
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.recipe import numbered, written
from compression.params import Field

GRID_POINTS = 5  # points that a grid takes of a range of floats


@dataclass(frozen=True)
class Range:
    """The values that a field may take: numbers from `low` to `high`, or one of `choices`."""

    field: Field
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial, name: str) -> Any:
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if self.field.type is int:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    @property
    def log(self) -> bool:
        return self.field.param.log and self.low > 0

    def grid(self) -> list[Any]:
        """The values that a grid takes of it."""
        if self.choices:
            return list(self.choices)
        if self.field.type is int:
            return list(range(int(self.low), int(self.high) + 1))
        spread = np.geomspace if self.log else np.linspace
        return [float(value) for value in spread(self.low, self.high, GRID_POINTS)]

    @property
    def repeats(self) -> bool:
        """Whether two trials are likely to take the same value."""
        return bool(self.choices) or self.field.type is int

    def __str__(self) -> str:
        return "/".join(map(str, self.choices)) if self.choices else f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Space:
    """A recipe with holes: steps as far as they are written, and a range for every field left out."""

    labels: tuple[str, ...]
    steps: tuple[Method, ...]
    ranges: Mapping[str, Range]  # label.field -> range

    def steps_of(self, trial: Trial) -> list[Method]:
        """The steps with values that the sampler suggests."""
        return self.filled({name: found.suggest(trial, name) for name, found in self.ranges.items()})

    def filled(self, values: Mapping[str, Any]) -> list[Method]:
        """The steps with the values of `label.field`."""
        return [
            replace(step, **{field: self.value(label, field, values) for field in self.searched(label)})
            for label, step in zip(self.labels, self.steps, strict=True)
        ]

    def value(self, label: str, name: str, values: Mapping[str, Any]) -> Any:
        """The value of a field among those that Optuna stores: a list or mapping is read from its text."""
        field, stored = self.ranges[f"{label}.{name}"].field, values[f"{label}.{name}"]
        return field.parse(stored) if field.kind.container else stored

    def searched(self, label: str) -> list[str]:
        return [name.partition(".")[2] for name in self.ranges if name.partition(".")[0] == label]

    def repeats(self, number: int) -> bool:
        """Whether trials are likely to share their first `number` steps."""
        return all(self.ranges[f"{la}.{f}"].repeats for la in self.labels[:number] for f in self.searched(la))

    def grid(self) -> dict[str, list[Any]]:
        return {name: found.grid() for name, found in self.ranges.items()}


def space(recipe: str, narrowed: Mapping[str, str]) -> Space:
    """The space of a recipe, `narrowed` as in Plan.space; UserError where there is nothing to search."""
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
    """The fields that change nothing, whatever the texts in `ranges` will be."""
    texts = {name: found.choices for name, found in ranges.items() if found.field.type is str}
    found = []
    for values in itertools.product(*texts.values()):
        with contextlib.suppress(UserError):  # what cannot be combined is said of the trial that tries it
            found.append(replace(step, **dict(zip(texts, values, strict=True))).inactive())
    return frozenset.intersection(*found) if found else frozenset()


def _default_range(field: Field) -> Range:
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
