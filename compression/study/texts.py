"""Every word a participant reads, in the languages of `texts.yaml`; the language is that of the context."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml

from compression.errors import UserError

DEFAULT = "en"
LANGUAGES = {"en": "English", "zh": "中文"}
language: ContextVar[str] = ContextVar("language", default=DEFAULT)


@functools.cache
def known() -> dict[str, dict[str, str]]:
    """Key -> language -> text."""
    return yaml.safe_load((Path(__file__).parent / "texts.yaml").read_text(encoding="utf-8"))


def say(key: str, /, **values: Any) -> str:
    """The text `key` in the language of the context, with `values` filled in."""
    return pick(known()[key]).format(**values)


def pick(text: Mapping[str, str]) -> str:
    """A text of several languages in that of the context, else in the first it has."""
    return text.get(language.get()) or next(iter(text.values()))


@contextlib.contextmanager
def speaking(code: str) -> Iterator[None]:
    """Within the block, texts are said in this language."""
    token = language.set(code if code in LANGUAGES else DEFAULT)
    try:
        yield
    finally:
        language.reset(token)


class Refused(UserError):
    """A UserError said in the language of whoever reads it: a key of `texts.yaml` and what to fill in."""

    def __init__(self, key: str, /, **values: Any):
        super().__init__(key)
        self.key, self.values = key, values

    def __str__(self) -> str:
        return say(self.key, **self.values)
