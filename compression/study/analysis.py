"""The results of the study for researchers: tables and figures with pseudonyms only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression.files import to_csv
from compression.study import (
    database,
    figures,
    notes,
    participant_runs,
    participants,
    questionnaires,
    timesheet,
)
from compression.tracking.journal import write_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from compression.study.participant_runs import ParticipantRun
    from compression.study.tables import Participant
    from compression.study.timesheet import TimesheetLine

Table = list[dict[str, Any]]
MAX_SCORE = 1e6  # whoever writes a run may write any metrics, and one of 1e18 would flatten everybody's curves


@dataclass(frozen=True)
class ParticipantData:
    """The time sheet and runs of one participant, without their id."""

    pseudonym: str
    background: str
    assignment: str
    lines: list[TimesheetLine]
    runs: list[ParticipantRun]

    @property
    def identity(self) -> dict[str, str]:
        """The columns by which every table names the participant."""
        return {"participant": self.pseudonym, "background": self.background, "assignment": self.assignment}


def load_participants(session: Session) -> list[ParticipantData]:
    """Return the data of everybody who has consented. Raises UserError if MLflow does not answer."""
    return [_load_participant(session, participant) for participant in participants.list_consenting(session)]


def _load_participant(session: Session, participant: Participant) -> ParticipantData:
    runs = participant_runs.load_runs(participant.id)
    lines = timesheet.build_timesheet(session, participant, runs)
    return ParticipantData(participant.pseudonym, participant.background, participant.assignment, lines, runs)


def hours_by_row(data: Sequence[ParticipantData]) -> Table:
    """Return the hours of every participant and row of the time sheet."""
    return [person.identity | record for person in data for record in timesheet.to_records(person.lines)]


def mean_hours_by_background(data: Sequence[ParticipantData]) -> Table:
    """Return the mean hours of every background and row of the time sheet, and of how many participants."""
    groups: dict[tuple[str, str], list[TimesheetLine]] = {}
    for person in data:
        for line in person.lines:
            groups.setdefault((person.background, line.row), []).append(line)
    return [
        {
            "background": background,
            "row": row,
            "people": len(lines),
            "mean_clock_hours": round(sum(line.clock_hours for line in lines) / len(lines), 4),
            "mean_run_hours": round(sum(line.run_hours for line in lines) / len(lines), 4),
        }
        for (background, row), lines in groups.items()
    ]


def runs_by_method(data: Sequence[ParticipantData]) -> Table:
    """Return the number of finished runs of every participant and method, most frequent first."""
    return [
        person.identity | {"method": method, "runs": count}
        for person in data
        for method, count in Counter(r.method for r in _finished(person)).most_common()
    ]


def _finished(person: ParticipantData) -> list[ParticipantRun]:
    return participant_runs.finished_compressions(person.runs)


def preference_records(session: Session) -> Table:
    """Return the technique that each participant prefers for each situation, and why."""
    return [
        {"participant": p.pseudonym, "situation": kept.situation, "technique": kept.technique, "why": kept.why}
        for p in participants.list_consenting(session)
        for kept in notes.current_preferences(session, p)
    ]


def learning_curves(data: Sequence[ParticipantData]) -> Table:
    """Return the result of every finished run against the hours of runs up to its end.

    `score` is the quality that was kept (a ratio) times the compression ratio, `best_score` the highest so far.
    """
    return [row for person in data for row in _learning_curve(person)]


def _learning_curve(person: ParticipantData) -> Table:
    rows: Table = []
    runs: list[ParticipantRun] = []
    best = 0.0
    for run in _finished(person):
        runs.append(run)
        kept = next((value for name, value in run.metrics.items() if name.endswith("_kept")), None)
        ratio = run.metrics.get("compression_ratio")
        if kept is None or ratio is None or not 0 <= kept * ratio <= MAX_SCORE:  # not measured; its hours count
            continue
        best = max(best, kept * ratio)
        effort = {"hours": round(participant_runs.total_hours(runs), 4), "method": run.method}
        result = {"quality_kept": kept, "compression_ratio": ratio, "score": kept * ratio, "best_score": best}
        rows.append(person.identity | effort | result)
    return rows


def clock_agreement(data: Sequence[ParticipantData]) -> Table:
    """Return the hours by the clock and by the runs of every row with either, their difference and their ratio."""
    return [
        person.identity
        | {
            "row": line.row,
            "clock_hours": round(line.clock_hours, 4),
            "run_hours": round(line.run_hours, 4),
            "difference": round(line.clock_hours - line.run_hours, 4),
            # an empty cell, not infinity
            "ratio": round(line.clock_hours / line.run_hours, 4) if line.run_hours else "",
        }
        for person in data
        for line in person.lines
        if line.row != timesheet.OTHER_ROW and (line.clock_hours or line.run_hours)
    ]


def build_tables(session: Session) -> dict[str, Table]:
    """Return all tables of the analysis, by name. Raises UserError if MLflow does not answer."""
    data = load_participants(session)
    return {
        "times": hours_by_row(data),
        "times-by-background": mean_hours_by_background(data),
        "choices": runs_by_method(data),
        "preferences": preference_records(session),
        "learning": learning_curves(data),
        "agreement": clock_agreement(data),
        "questionnaires": questionnaires.answer_records(session, participants.list_consenting(session)),
    }


def write_analysis(folder: Path) -> list[Path]:
    """Write all tables as CSV and all figures as PNG into `folder`, and return the files in it.

    Raises UserError if MLflow or the database does not answer, or the folder is not writable.
    """
    with database.open_session() as session:
        tables = build_tables(session)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            (folder / f"{name}.csv").write_text(to_csv(table), encoding="utf-8")
        for name, figure in figures.draw_figures(tables).items():
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
    except OSError as error:
        raise write_error(folder, error) from error
    return sorted(folder.iterdir())
