"""Translated sentences of `texts.yaml`, in the language of the current context (a request or a command)."""

from __future__ import annotations

import contextlib
import functools
import unicodedata
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_LANGUAGE = "en"
LANGUAGES = {"en": "English", "zh": "中文"}
language: ContextVar[str] = ContextVar("language", default=DEFAULT_LANGUAGE)


@functools.cache
def load_texts() -> dict[str, dict[str, str]]:
    """Return the texts of `texts.yaml` by key and language."""
    texts: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "texts.yaml").read_text("utf-8"))
    return texts


def translate(key: str, /, **values: Any) -> str:
    """Return the text `key` in the current language, with `values` in its placeholders, made printable."""
    shown = {n: value if isinstance(value, (int, float)) else printable(str(value)) for n, value in values.items()}
    return localize(load_texts()[key]).format(**shown)


def printable(text: str, allowed: str = "") -> str:
    r"""Return `text` with escapes (`\x1b`) for all that is no plain letter, sign or blank, but for those `allowed`.

    A terminal obeys control characters: it erases, retitles, and puts a line of a stranger's among ours. What turns the
    direction of writing, or shows nothing, hides what is there.
    """
    return "".join(
        c if c.isprintable() or c in allowed or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in text
    )


def localize(text: Mapping[str, str]) -> str:
    """Return the current language's version of `text` (language to text); its first one if there is none."""
    return text.get(language.get()) or next(iter(text.values()))


@contextlib.contextmanager
def use_language(code: str) -> Iterator[None]:
    """Set the current language within the block; an unknown code means the default language."""
    token = language.set(code if code in LANGUAGES else DEFAULT_LANGUAGE)
    try:
        yield
    finally:
        language.reset(token)


class StudyError(UserError):
    """A UserError with a translated sentence: `key` of `texts.yaml` and the values of its placeholders.

    It is translated when it is shown, not when it is raised: only the reader's language counts.
    """

    def __init__(self, key: str, /, **values: Any):
        super().__init__(key)
        self.key, self.values = key, values

    def __str__(self) -> str:
        return translate(self.key, **self.values)
