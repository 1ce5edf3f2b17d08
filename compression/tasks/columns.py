"""Which columns of somebody's table hold text and labels, and what the labels are: classes or numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEXTS = ("text", "sentence", "review", "content", "comment", "body", "message", "tweet", "document", "utterance")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "document"),
)
LABELS = ("label", "labels", "class", "target", "category", "sentiment", "stars", "rating", "score")
MAX_CLASSES = 1000
HIDDEN = -1  # the label of every example in a published test split without labels
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?(e[+-]?\d+)?|\.\d+|inf)", re.IGNORECASE)  # 007 is a name
SHOWN = 12  # classes and columns that a sentence lists


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a task reads."""

    texts: tuple[str, ...]  # one, or two for a pair of texts
    label: str


def find_columns(names: Sequence[str], place: object, texts: Sequence[str] = (), label: str = "") -> Columns:
    """Return the given columns, and for those not given the ones with usual names.

    Raises UserError, which names `place` and its columns, if a given one is missing, or if there is none, or more than
    one that it could be.
    """
    has = f"{place} has the columns {_list(names)}"
    if missing := [name for name in (*texts, *filter(None, [label])) if name not in names]:
        raise UserError(f"{has}, and no {' and '.join(map(repr, missing))}.")
    if len(texts) > 2:
        raise UserError(f"text_columns={'/'.join(texts)} names {len(texts)} columns; a model reads one text or a pair.")
    if len(set(texts)) < len(texts):
        raise UserError(f"text_columns={'/'.join(texts)} names one column twice; a pair of texts stands in two.")
    label = label or _find_label([name for name in names if name not in texts], has)
    if label in texts:
        raise UserError(f"The column {label!r} cannot be both text and label.")
    return Columns(tuple(texts) or _find_texts([name for name in names if name != label], has), label)


def _find_label(names: Sequence[str], has: str) -> str:
    found = [name for name in names if name.lower() in LABELS]
    if len(found) != 1:
        which = f"{_list(found)} could all be the labels" if found else "none has a usual name of labels"
        raise UserError(f"{has}; {which}: name the column with label_column=NAME (the first row names the columns).")
    return found[0]


def _find_texts(names: Sequence[str], has: str) -> tuple[str, ...]:
    by_name = {name.lower(): name for name in names}
    pairs = [tuple(by_name[name] for name in pair) for pair in PAIRS if all(name in by_name for name in pair)]
    single = [(name,) for name in names if name.lower() in TEXTS and not any(name in pair for pair in pairs)]
    if not pairs and not single and len(names) == 1:
        return (names[0],)  # what is left beside the labels
    if len(pairs) + len(single) != 1:
        could = " or ".join("/".join(each) for each in (*pairs, *single))
        which = f"the text could be {could}" if could else "none has a usual name of text"
        raise UserError(f"{has}; {which}: name the column, or two for a pair, with text_columns=NAME or NAME/NAME.")
    return (*pairs, *single)[0]


@dataclass(frozen=True)
class Labels:
    """What the labels are, and the target of each one."""

    classes: tuple[str, ...]  # in the order of their targets; empty for numbers
    targets: Mapping[Any, int]  # value -> target; empty for numbers


def parse_labels(values: Sequence[Any]) -> list[Any]:
    """Return labels as whole numbers if all are, or else as numbers, or else as text without the blanks around it.

    Labels are what a file holds: text, numbers or truth values. Those that are missing (None, "", NaN) become None.
    """
    cleaned = [_clean(value) for value in values]
    present = [value for value in cleaned if value is not None]
    if any(isinstance(value, str) for value in present):
        if not all(isinstance(value, str) for value in present):
            return [value if value is None else str(value) for value in cleaned]
        if all(NUMBER.fullmatch(value) for value in present):
            cleaned = [value if value is None else float(value) for value in cleaned]
            present = [value for value in cleaned if value is not None]
    if present and all(isinstance(value, float | int) and float(value).is_integer() for value in present):
        return [value if value is None else int(value) for value in cleaned]
    return cleaned


def _clean(value: Any) -> Any:
    """Return a label as text, int or float; None if it is missing."""
    if isinstance(value, str):
        value = value.strip()
        return None if value.lower() in ("", "nan") else value
    if isinstance(value, bool):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def describe_labels(train: Sequence[Any], names: Sequence[str], place: object, as_numbers: bool = False) -> Labels:
    """Decide what the labels are from those of the training data, as `parse_labels` gives them.

    Text and whole numbers are classes, in sorted order; other numbers are values to predict, as all are with
    `as_numbers`. `names` are the names of classes 0, 1, …, if the file knows them. Raises UserError for one class, too
    many, or values that are neither.
    """
    distinct = set(train)
    if unusable := [v for v in distinct if not isinstance(v, str | int | float) or v in (math.inf, -math.inf)]:
        raise UserError(f"{place} are to be text or numbers, and hold {str(unusable[0])[:60]!r}.")
    if len(distinct) < 2:
        raise UserError(
            f"{place} are all {next(iter(distinct), None)!r}; there is nothing to learn with one class alone."
        )
    is_text = any(isinstance(value, str) for value in distinct)
    if as_numbers and (is_text or names):
        raise UserError(
            f"{place} are classes ({_list(names or sorted(map(str, distinct)))}), not numbers: take task=text."
        )
    if as_numbers or any(isinstance(value, float) for value in distinct):
        return Labels((), {})
    if names:
        if outside := [value for value in distinct if value not in range(len(names))]:
            raise UserError(f"{place} hold {outside[0]!r}; the file names the classes 0 to {len(names) - 1}.")
        return Labels(tuple(names), {i: i for i in range(len(names))})
    classes = sorted(distinct)
    if len(classes) > MAX_CLASSES or 2 * len(classes) > len(train):
        more = "" if is_text else " (task=text/regression predicts numbers)"
        raise UserError(
            f"{place} hold {len(classes)} classes in {len(train)} examples; at most {MAX_CLASSES}, and two examples of "
            f"each, can be learned{more}: is it the right column? label_column=NAME names another."
        )
    return Labels(tuple(map(str, classes)), {value: i for i, value in enumerate(classes)})


def _list(names: Sequence[str]) -> str:
    """Return the first names, in quotes, separated by commas."""
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(repr(name[:60]) for name in names[:SHOWN]) + more
