"""The time sheet: the hours of each row by the participant's clock, and by what the runs recorded."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.study import clock, database, participant_runs
from compression.study.tables import utc_now
from compression.study.texts import localize, translate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from compression.study.participant_runs import ParticipantRun
    from compression.study.tables import Participant

OTHER_ROW = "other"  # runs that count for no row: of a family that none names, or started outside a stage of work


@dataclass(frozen=True)
class TimesheetLine:
    """The hours of one row."""

    row: str
    title: str
    clock_hours: float  # corrections included
    corrected_hours: float  # the sum of the corrections
    run_hours: float  # recorded by runs; time in which several ran at once counts once


def build_timesheet(session: Session, participant: Participant, runs: Sequence[ParticipantRun]) -> list[TimesheetLine]:
    """Return a line for every row of the study, and one for the runs that count for none, if there are any."""
    study, recorded, now = database.load_study(session), clock.load(session, participant), utc_now()
    lines = [
        TimesheetLine(
            name,
            localize(row.title),
            recorded.hours(name, now),
            recorded.corrections.get(name, 0.0),
            participant_runs.total_hours(run for run in runs if run.row(study) == name),
        )
        for name, row in study.rows.items()
    ]
    other = participant_runs.total_hours(run for run in runs if not run.row(study))
    return [*lines, TimesheetLine(OTHER_ROW, translate("other_runs"), 0.0, 0.0, other)] if other else lines


def to_records(lines: Sequence[TimesheetLine]) -> list[dict[str, str | float]]:
    """Return the time sheet as rows of a table, in hours."""
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


def format_table(lines: Sequence[TimesheetLine]) -> str:
    """Return the time sheet as text for a terminal."""
    header = ("", translate("by_clock"), translate("corrected_by"), translate("by_runs"))
    body = [
        (f"{x.row}  {x.title}", *map("{:.2f}".format, (x.clock_hours, x.corrected_hours, x.run_hours))) for x in lines
    ]
    width = max(_display_width(title) for title, *_ in [header, *body])
    return "\n".join(
        title + " " * (width - _display_width(title)) + "".join(" " * max(12 - _display_width(c), 1) + c for c in cells)
        for title, *cells in [header, *body]
    )


def _display_width(text: str) -> int:
    """Return the columns that `text` takes in a terminal, two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
