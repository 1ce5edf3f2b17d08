"""One dataclass field = one command-line option = one MLflow parameter = one Optuna range = one help text.

`param` describes a field; everything else here reads the description back. Nothing about a field is written
a second time anywhere.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compression.errors import UserError


@dataclass(frozen=True)
class Interval:
    """The numbers a field may take, read from the mathematical notation it is also shown in: `[0, 1)`."""

    text: str

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = self.text[1:-1].split(",")
        return float(low), float(high)

    def __contains__(self, value: float) -> bool:
        low, high = self.bounds
        above = value >= low if self.text[0] == "[" else value > low
        below = value <= high if self.text[-1] == "]" else value < high
        return above and below


@dataclass(frozen=True)
class Param:
    help: str
    interval: Interval | None = None
    choices: tuple[str, ...] = ()
    search: tuple[float, float] | tuple[str, ...] | None = None
    log: bool = False


def param(
    default: Any,
    help: str,  # noqa: A002
    *,
    interval: str = "",
    choices: tuple[str, ...] = (),
    search: tuple[float, float] | tuple[str, ...] | None = None,
    log: bool = False,
) -> Any:
    """A dataclass field with its help, its valid values, and the range that Optuna searches.

    `interval` is written as in mathematics, `(0, inf)` or `[0, 1]`; `choices` are the values a text may take;
    `search` bounds what tuning tries (narrower than what is valid), on a log scale if `log`. A default of None
    means "left to the task" for a field of a training recipe, and "not set" elsewhere.
    """
    described = Param(help, Interval(interval) if interval else None, choices, search, log)
    return dataclasses.field(default=default, metadata={"param": described})


@dataclass(frozen=True)
class Field:
    """A dataclass field as the outside sees it."""

    name: str
    type: type  # int, float, bool or str
    default: Any
    param: Param

    @property
    def optional(self) -> bool:
        return self.default is None

    def parse(self, text: str) -> Any:
        """The value that `text` stands for; a UserError naming the field where it stands for none."""
        try:
            value = _READ[self.type](text.strip())
        except (ValueError, KeyError):
            raise UserError(f"{self.name}={text!r} is not {_SPOKEN[self.type]}; {self.valid}.") from None
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raise a UserError unless `value` has the field's type and lies in its range."""
        if value is None and self.optional:
            return
        if not _is(value, self.type):
            raise UserError(f"{self.name}={value!r} is not {_SPOKEN[self.type]}; {self.valid}.")
        p = self.param
        if isinstance(value, float) and math.isnan(value) or p.interval and value not in p.interval:
            raise UserError(f"{self.name}={value} is out of range; {self.valid}.")
        if p.choices and value not in p.choices:
            raise UserError(f"{self.name}={value!r} is unknown; {self.valid}.")

    @property
    def valid(self) -> str:
        """What would be right, as the end of a sentence."""
        if self.param.choices:
            return f"it is one of {', '.join(self.param.choices)}"
        within = f" in {self.param.interval.text}" if self.param.interval else ""
        return f"it takes {_SPOKEN[self.type]}{within}"


_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_READ: dict[type, Any] = {int: int, float: float, str: str, bool: lambda text: _TRUTH[text.lower()]}
_SPOKEN: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def fields(cls: Any) -> dict[str, Field]:
    """The described fields of a dataclass, by name, in the order they were written."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: Field(f.name, _plain(hints[f.name]), f.default, f.metadata["param"])
        for f in dataclasses.fields(cls)
        if "param" in f.metadata
    }


def _plain(hint: Any) -> type:
    """`int` of `int | None`."""
    if isinstance(hint, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def check(instance: Any) -> None:
    """Check every described field of a dataclass instance; call it from `__post_init__`."""
    for field in fields(type(instance)).values():
        field.check(getattr(instance, field.name))


def values(instance: Any) -> dict[str, Any]:
    """Field name -> value, for logging."""
    return {name: getattr(instance, name) for name in fields(type(instance))}


def from_text(cls: type, texts: Mapping[str, str], what: str) -> Any:
    """Build `cls` from texts; `what` names it in the error ("the method 'response'")."""
    known = fields(cls)
    for name in texts:
        if name not in known:
            raise UserError(f"{what} has no field {name!r}; it has {', '.join(known)}.")
    return cls(**{name: known[name].parse(text) for name, text in texts.items()})
