"""The time sheet: a row's hours by the participant's clock, and beside them those that the runs recorded."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from compression.study import clock, runs, store
from compression.study.runs import PersonRun
from compression.study.tables import Participant, now
from compression.study.texts import pick, say

OTHER = "other"  # runs that belong to no row: of another family, or outside a stage of work


@dataclass(frozen=True)
class Line:
    row: str
    title: str
    clock_hours: float  # by hand, corrections included
    corrected_hours: float  # of which corrections
    run_hours: float  # recorded by the runs themselves; overlapping ones count once


def sheet(opened: Session, person: Participant, of_person: Sequence[PersonRun]) -> list[Line]:
    """A line for every row of the study, and one for runs that belong to none where there are any."""
    study, read, moment = store.study(opened), clock.read(opened, person), now()
    lines = [
        Line(
            row,
            pick(about.title),
            read.hours(row, moment),
            read.corrections.get(row, 0.0),
            runs.hours(r for r in of_person if r.row(study) == row),
        )
        for row, about in study.rows.items()
    ]
    rest = runs.hours(r for r in of_person if not r.row(study))
    return [*lines, Line(OTHER, say("other_runs"), 0.0, 0.0, rest)] if rest else lines


def rows(lines: Sequence[Line]) -> list[dict[str, str | float]]:
    """The sheet as a table's rows, in hours."""
    return [
        {
            "row": line.row,
            "title": line.title,
            "clock_hours": round(line.clock_hours, 4),
            "of_which_corrections": round(line.corrected_hours, 4),
            "run_hours": round(line.run_hours, 4),
        }
        for line in lines
    ]


def table(lines: Sequence[Line]) -> str:
    """The sheet for a terminal."""
    head = ("", say("by_clock"), say("corrected_by"), say("by_runs"))
    body = [
        (f"{n.row}  {n.title}", *map("{:.2f}".format, (n.clock_hours, n.corrected_hours, n.run_hours))) for n in lines
    ]
    width = max(map(_width, (row[0] for row in [head, *body])))
    return "\n".join(
        title + " " * (width - _width(title)) + "".join(" " * max(12 - _width(c), 1) + c for c in cells)
        for title, *cells in [head, *body]
    )


def _width(text: str) -> int:
    """Columns in a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
