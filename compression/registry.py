"""Registries: names that stand for classes and functions, the lab's own and those of installed packages.

A package brings a method, a model or a task by an entry point in its pyproject.toml, in the group
`compression.methods`, `compression.models` or `compression.tasks`. Names are listed without importing what they name.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

GROUPS = "compression."  # what the groups' names begin with


@dataclass(frozen=True)
class EntryPoint:
    """A line of a package's `entry_points.txt`."""

    group: str
    name: str
    value: str  # module:attribute
    package: str


def entry_points() -> tuple[EntryPoint, ...]:
    """Return what installed packages bring to the lab, as `importlib.metadata.entry_points` would.

    Reads the files itself, which `help` waits for: 10 ms where importlib.metadata takes 60 to 180 ms.
    """
    return _entry_points(tuple(sys.path))


@functools.cache
def _entry_points(folders: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    found = []
    for folder in map(Path, folders):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                found += _read_entry_points(folder / name / "entry_points.txt", name.partition("-")[0])
    return tuple(dict.fromkeys(found))  # a folder may be on the path twice


def _read_entry_points(file: Path, package: str) -> list[EntryPoint]:
    """Return the lab's entry points in a file; none if there is no such file."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return []
    group, found = "", []
    for line in map(str.strip, text.splitlines() if GROUPS in text else []):
        if line.startswith("["):
            group = line.strip("[] ")
        elif group.startswith(GROUPS) and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found.append(EntryPoint(group, name.strip(), value.strip(), package))
    return found


class Registry(Mapping[str, str]):
    """Names, each with its "module:attribute": the lab's own ones, then those of packages.

    With `kinds`, a package gives the kind before the name: `prune.mine` is the method `mine` of the family `prune`.
    """

    def __init__(self, what: str, own: Mapping[str, str], group: str, kinds: Collection[str] = ()) -> None:
        self.what, self.own, self.group, self.kinds = what, dict(own), group, tuple(kinds)

    def __getitem__(self, name: str) -> str:
        return self.own[name] if name in self.own else self.brought()[name][0].value

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from (name for name in self.brought() if name not in self.own)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def brought(self) -> dict[str, list[EntryPoint]]:
        """Return the entry points of packages by name: more than one where packages disagree."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points():
            kind, name = self._parts(entry)
            if entry.group == self.group and (not self.kinds or kind in self.kinds):
                found.setdefault(name, []).append(entry)
        return found

    def kind(self, name: str) -> str:
        """Return the kind that a package gave for its `name`."""
        return self._parts(self.brought()[name][0])[0]

    def load(self, name: str) -> Any:
        """Import what `name` stands for. Raises UserError if a package's cannot be, or if two things have the name."""
        entries = self.brought().get(name, [])
        if len(entries) + (name in self.own) > 1:
            owners = [*(["the lab"] if name in self.own else []), *(f"the package {e.package}" for e in entries)]
            raise UserError(f"The {self.what} {name!r} comes from {' and from '.join(owners)}; remove one of them.")
        module, _, attribute = self[name].partition(":")
        if not entries:
            return getattr(importlib.import_module(module), attribute)
        try:
            return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except Exception as error:  # whatever another's code raises
            raise UserError(
                f"The {self.what} {name!r} of the package {entries[0].package} ({self[name]}) cannot be loaded: "
                f"{type(error).__name__}: {first_line(error)}."
            ) from error

    def unknown(self, name: str) -> UserError:
        """Return the refusal of a name that nothing has; it lists those that there are."""
        misnamed = [e for e in entry_points() if e.group == self.group and e.name == name and name not in self]
        if misnamed:
            return UserError(
                f"The package {misnamed[0].package} brings the {self.what} {name!r} without its kind; its entry point "
                f"should be named {' or '.join(f'{kind}.{name}' for kind in self.kinds)}."
            )
        return UserError(f"There is no {self.what} {name!r}; there are {', '.join(self)}.")

    def _parts(self, entry: EntryPoint) -> tuple[str, str]:
        """Return an entry point's kind, empty where there are none, and its name."""
        kind, dot, name = entry.name.partition(".")
        return (kind, name) if self.kinds and dot else ("", entry.name)
