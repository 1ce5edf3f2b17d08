"""One dataclass field = one command-line option = one MLflow parameter = one Optuna range = one help text.

`param` describes a field; everything else here reads the description back. Nothing about a field is written
a second time anywhere. `group` holds the fields of another dataclass: from outside they look like the holder's own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from compression.errors import UserError, quoted

Place = Annotated[str, "place"]  # the name of a model, a task, a folder, runs:/… or models:/…: it may hold a /
Values = Annotated[str, "values"]  # the values of another field, low..high or a/b
When = Mapping[str, Collection[Any]]  # field -> the values of it with which another field has an effect


@dataclass(frozen=True)
class Interval:
    """The numbers a field may take, read from the mathematical notation it is also shown in: `[0, 1)`."""

    text: str

    @property
    def bounds(self) -> tuple[float, float]:
        """Its lower and upper end, whether they belong to it or not."""
        low, high = self.text[1:-1].split(",")
        return float(low), float(high)

    def __contains__(self, value: float) -> bool:
        low, high = self.bounds
        above = value >= low if self.text[0] == "[" else value > low
        below = value <= high if self.text[-1] == "]" else value < high
        return above and below


@dataclass(frozen=True)
class Param:
    """What `param` was told of a field."""

    help: str
    interval: Interval | None = None
    choices: tuple[str, ...] = ()
    search: tuple[float, float] | tuple[str, ...] | None = None
    log: bool = False
    when: When = dataclasses.field(default_factory=dict)


def param(
    default: Any,
    help: str,
    *,
    interval: str = "",
    choices: tuple[str, ...] = (),
    search: tuple[float, float] | tuple[str, ...] | None = None,
    log: bool = False,
    when: When | None = None,
) -> Any:
    """A dataclass field with its help, its valid values, and the range that Optuna searches.

    Its type is int, float, str, bool or `Place`, one of these or None, `tuple[item, ...]` for a list,
    `Mapping[str, item]`, or `tuple[tuple[str, str], ...]` for a list of pairs. `interval`, as in mathematics
    (`(0, inf)`, `[0, 1]`), and `choices` hold for each item. `search` bounds what tuning tries (narrower than what is
    valid), on a log scale if `log`. `when={"variant": ("sigmoid",)}`: the field has an effect with these values of
    another one alone. A default of None means "left to the task" for a field of `Training`, and "not set" elsewhere.
    """
    described = Param(help, Interval(interval) if interval else None, choices, search, log, when or {})
    metadata = {"param": described, "default": default}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Group:
    """What `group` was told of a field that holds other fields."""

    fixed: frozenset[str]
    when: When


def group(cls: type, *, when: When | None = None, fixed: Mapping[str, Any] | None = None, **defaults: Any) -> Any:
    """A dataclass field that holds a `cls`, whose fields are the holder's own to whoever looks from outside.

    `defaults` replace those of `cls`; what is `fixed` cannot be chosen, and is no field of the holder. `when` is that
    of every field in the group.
    """
    fixed = fixed or {}
    return dataclasses.field(default=cls(**defaults, **fixed), metadata={"group": Group(frozenset(fixed), when or {})})


@dataclass(frozen=True)
class Kind:
    """A field's type: of a scalar, or of the items of a list, of a mapping's values, of a list of pairs."""

    item: type  # int, float, bool or str
    container: str = ""  # list, mapping or pairs
    slashes: bool = False  # the items may hold a / of their own
    noun: str = ""  # what an item is, where its type does not say it
    place: bool = False  # an item names a model, data or a file: who runs it for others asks whether they may read it

    @property
    def spoken(self) -> str:
        """What such a value is, as part of a sentence."""
        return {
            "": self.noun or _SPOKEN[self.item],
            "list": f"a list of {_PLURAL[self.item]}, a{self.separator}b",
            "mapping": f"a name with {self.noun or _SPOKEN[self.item]} for each, a:x{self.separator}b:y",
            "pairs": "a list of pairs of names, a:x/b:y",
        }[self.container]

    @property
    def metavar(self) -> str:
        """The same as a command line's help shows it."""
        name = self.item.__name__
        return {"": name, "list": f"{name}{self.separator}…", "mapping": f"name:{name}/…", "pairs": "name:name/…"}[
            self.container
        ]

    @property
    def separator(self) -> str:
        """What stands between items where a list is written as one text."""
        return "//" if self.slashes else "/"


_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_READ: dict[type, Any] = {int: int, float: float, str: str, bool: lambda text: _TRUTH[text.lower()]}
_SPOKEN: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PLURAL: dict[type, str] = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false"}
_NOUNS: dict[Any, str] = {Place: "a text", Values: "low..high or x/y"}


def items(text: str, slashes: bool = False) -> list[str]:
    """The items of a list written as one text.

    Between them stands a `,`, or a `/` (which a step of a recipe leaves free), or a `//`. Items with `slashes` of their
    own are never split at a single one.
    """
    return [item for item in _split(text, slashes) if item]


def _split(text: str, slashes: bool) -> list[str]:
    separator = "//" if "//" in text else "," if "," in text or slashes else "/"
    return [part.strip() for part in text.split(separator)]


def pairs(text: str, slashes: bool = False) -> list[tuple[str, str]]:
    """The (key, value) items of a mapping written as one text, `key:value` or `key=value` each.

    Raises ValueError for an item without key or value.
    """
    found = []
    for item in _split(text, slashes) if text else ():
        key, mark, value = item.partition("=" if "=" in item else ":")
        if not (key.strip() and mark and value.strip()):
            raise ValueError(item)
        found.append((key.strip(), value.strip()))
    return found


@dataclass(frozen=True)
class Field:
    """A dataclass field as the outside sees it."""

    name: str
    kind: Kind
    default: Any
    param: Param
    group: str = ""  # the holder's field that holds it
    when: When = dataclasses.field(default_factory=dict)

    @property
    def type(self) -> type:
        """The type of a scalar; `tuple` or `dict` for a list or mapping."""
        return {"": self.kind.item, "mapping": dict}.get(self.kind.container, tuple)

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return self.default is None

    @property
    def empty(self) -> bool:
        """Whether an empty text stands for its default."""
        return self.default is None or self.default in ("", (), {})

    def parse(self, text: str) -> Any:
        """The value that `text` stands for; a UserError naming the field where it stands for none."""
        try:
            value = self._parsed(text.strip())
        except (ValueError, KeyError):
            raise UserError(f"{self.name}={quoted(text)} is not {self.kind.spoken}; {self.valid}.") from None
        self.check(value)
        return value

    def read(self, value: Any) -> Any:
        """The same for a value from YAML or JSON, which have lists, mappings and numbers of their own."""
        if value is None:
            return self.default if self.empty else self.parse("")
        if not isinstance(value, (list, dict)):
            return self.parse(str(value))
        found = self._held(value)
        self.check(found)
        return found

    def _held(self, value: list[Any] | dict[Any, Any]) -> Any:
        """A list or mapping of scalars as the field holds it; UserError where it holds no such thing."""
        container = self.kind.container
        if isinstance(value, dict) and container in ("mapping", "pairs") and _are_scalars(value.values()):
            entries = {str(key): self._scalar(str(item)) for key, item in value.items()}
            return entries if container == "mapping" else tuple(entries.items())
        if isinstance(value, list) and container == "list" and _are_scalars(value):
            return tuple(self._scalar(str(item)) for item in value)
        if isinstance(value, list) and container == "pairs" and not any(isinstance(pair, dict) for pair in value):
            found = [pair if isinstance(pair, list) else _pair(str(pair)) for pair in value]
            if all(map(_are_scalars, found)):
                return tuple(tuple(map(str, pair)) for pair in found)
        raise UserError(f"{self.name}={quoted(value)} is not {self.kind.spoken}; {self.valid}.")

    def _parsed(self, text: str) -> Any:
        if not self.kind.container:
            return _READ[self.kind.item](text)
        if self.kind.container == "list":
            return tuple(_READ[self.kind.item](item) for item in items(text, self.kind.slashes))
        if self.kind.container == "pairs":
            return tuple(map(_pair, items(text)))
        found = pairs(text, self.kind.slashes)
        if len(dict(found)) < len(found):
            raise UserError(f"{self.name}={quoted(text)} names one thing twice; each counts once.")
        return {key: _READ[self.kind.item](value) for key, value in found}

    def _scalar(self, text: str) -> Any:
        try:
            return _READ[self.kind.item](text)
        except (ValueError, KeyError):
            raise UserError(
                f"{self.name} holds {quoted(text)}, which is not {_SPOKEN[self.kind.item]}; {self.valid}."
            ) from None

    def text(self, value: Any) -> str:
        """The text that `parse` reads `value` from."""
        if value is None or not self.kind.container:
            return "" if value is None else str(value)
        if self.kind.container == "list":
            return self.kind.separator.join(map(str, value))
        entries = value.items() if self.kind.container == "mapping" else value
        return self.kind.separator.join(f"{key}:{item}" for key, item in entries)

    def check(self, value: Any) -> None:
        """Raise a UserError unless `value` has the field's type and lies in its range."""
        if value is None and self.optional:
            return
        for item in self._items(value):
            self._check_item(item)
        if self.kind.container == "list" and self.param.choices and len(set(value)) < len(value):
            raise UserError(f"{self.name}={self.text(value)} names one thing twice; each counts once.")

    def _items(self, value: Any) -> Iterator[Any]:
        """The scalars of `value`; UserError where it is no container of the field's kind."""
        container, right = self.kind.container, (tuple, list)
        if not container:
            yield value
        elif container == "mapping" and isinstance(value, Mapping):
            yield from value.values()
        elif container == "list" and isinstance(value, right):
            yield from value
        elif container == "pairs" and isinstance(value, right) and all(len(pair) == 2 for pair in value):
            yield from (item for pair in value for item in pair)
        else:
            raise UserError(f"{self.name}={quoted(value)} is not {self.kind.spoken}; {self.valid}.")

    def _check_item(self, value: Any) -> None:
        if not _is(value, self.kind.item):
            raise UserError(f"{self.name}={quoted(value)} is not {_SPOKEN[self.kind.item]}; {self.valid}.")
        p = self.param
        if (isinstance(value, float) and math.isnan(value)) or (p.interval and value not in p.interval):
            raise UserError(f"{self.name}={value} is out of range; {self.valid}.")
        if p.choices and value not in p.choices:
            raise UserError(f"{self.name}={quoted(value)} is unknown; {self.valid}.")

    @property
    def valid(self) -> str:
        """What would be right, as the end of a sentence."""
        if self.param.choices:
            several = "any of" if self.kind.container else "one of"
            between = f" with {self.kind.separator} between them" if self.kind.container else ""
            return f"it is {several} {', '.join(self.param.choices)}{between}"
        within = f" in {self.param.interval.text}" if self.param.interval else ""
        each = ", each" if within and self.kind.container else ""
        return f"it takes {self.kind.spoken}{each}{within}"


def _pair(text: str) -> tuple[str, str]:
    """The two names of `a:b`; `c` stands for `c:c`."""
    one, colon, other = text.partition(":")
    return one, other if colon else one


def _are_scalars(values: Collection[Any]) -> bool:
    return not any(isinstance(value, (list, dict)) for value in values)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def fields(cls: Any) -> Mapping[str, Field]:
    """The described fields of a dataclass and of the groups that it holds, by name, in the order they were written."""
    return _fields(cls)


@functools.cache  # reading the types takes 2 ms; a chain of 100 steps asks 1,000 times
def _fields(cls: Any) -> Mapping[str, Field]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, Field] = {}
    for f in dataclasses.fields(cls):
        if "param" in f.metadata:
            described = f.metadata["param"]
            found[f.name] = Field(f.name, _kind(hints[f.name]), f.metadata["default"], described, when=described.when)
        elif "group" in f.metadata:
            held: Group = f.metadata["group"]
            for name, inner in fields(type(f.default)).items():
                if name not in held.fixed:
                    default, when = getattr(f.default, name), {**held.when, **inner.when}
                    found[name] = dataclasses.replace(inner, default=default, group=f.name, when=when)
    return found


def _kind(hint: Any) -> Kind:
    """What `fields` says of a type hint."""
    if isinstance(hint, types.UnionType):
        return _kind(next(a for a in typing.get_args(hint) if a is not type(None)))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return (
            Kind(str, "pairs")
            if typing.get_origin(inner) is tuple
            else dataclasses.replace(_kind(inner), container="list")
        )
    if typing.get_origin(hint) is Mapping:
        return dataclasses.replace(_kind(typing.get_args(hint)[1]), container="mapping")
    return Kind(str, slashes=True, noun=_NOUNS[hint], place=hint == Place) if hint in _NOUNS else Kind(hint)


class Flat(type):
    """The metaclass of dataclasses with described fields, which makes them easy to write by hand.

    The fields of a group may be given, and replaced, as if they were the holder's: `Structured(epochs=3)` is
    `Structured(training=Training(epochs=3))`. A list or mapping may be given as the text that stands for it, and a list
    as a Python list: `Structured(parts="heads/ffn")` is `Structured(parts=("heads", "ffn"))`.
    """

    def __call__(cls, *args: Any, **given: Any) -> Any:
        """Build an instance from flat keyword arguments."""
        known = fields(cls)
        for name in given.keys() & known.keys():
            if known[name].kind.container and isinstance(given[name], (str, list)):
                given[name] = known[name].read(given[name])
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            if "group" in f.metadata:
                names = {n for n, inner in known.items() if inner.group == f.name}
                own = {name: given.pop(name) for name in names & given.keys()}
                if own:
                    given[f.name] = dataclasses.replace(given.get(f.name, f.default), **own)
        return super().__call__(*args, **given)


def check(instance: Any) -> None:
    """Check every described field of a dataclass instance; call it from `__post_init__`."""
    for field in fields(type(instance)).values():
        field.check(value(instance, field))


def value(instance: Any, field: Field) -> Any:
    """The value of a field in an instance, or in the group that it holds."""
    return getattr(getattr(instance, field.group) if field.group else instance, field.name)


def values(instance: Any) -> dict[str, Any]:
    """Field name -> value."""
    return {name: value(instance, field) for name, field in fields(type(instance)).items()}


def texts(instance: Any, changed: bool = False) -> dict[str, str]:
    """Field name -> the text that it is read from; `changed`: of those alone that are not at their defaults."""
    known, found = fields(type(instance)), values(instance)
    return {n: known[n].text(v) for n, v in found.items() if not changed or v != known[n].default}


def inactive(instance: Any) -> frozenset[str]:
    """The fields that change nothing with the others as they are, by what their `when` says."""
    found = values(instance)
    return frozenset(
        name
        for name, field in fields(type(instance)).items()
        if any(found[other] not in having for other, having in field.when.items())
    )


def build(cls: type, given: Mapping[str, Any], what: str) -> Any:
    """Build `cls` from texts, or values as YAML has them; `what` names it in the error ("the method 'response'")."""
    known = fields(cls)
    for name in given:
        if name not in known:
            raise UserError(f"{what} has no field {name!r}; it has {', '.join(known)}.")
    return cls(**{name: known[name].read(value) for name, value in given.items()})
