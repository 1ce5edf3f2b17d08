"""What the study found, for the researcher: tables as CSV and pictures, under pseudonyms alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from compression.study import notes, people, pictures, questionnaires, runs, sheets, store, timesheet
from compression.study.runs import PersonRun
from compression.study.tables import Participant
from compression.study.timesheet import Line
from compression.tracking.journal import write_error

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One participant's part in the analysis; `lines` is their time sheet."""

    pseudonym: str
    background: str
    assignment: str
    lines: list[Line]
    runs: list[PersonRun]

    @property
    def known_as(self) -> dict[str, str]:
        return {"participant": self.pseudonym, "background": self.background, "assignment": self.assignment}


def cases(opened: Session) -> list[Case]:
    """Everybody who consented, in the order of their pseudonyms, which says nothing."""
    found = [person for person in people.everybody(opened) if person.consented]
    return [_case(opened, person) for person in sorted(found, key=lambda p: p.pseudonym)]


def _case(opened: Session, person: Participant) -> Case:
    of_person = runs.of_person(person.id)
    lines = timesheet.sheet(opened, person, of_person)
    return Case(person.pseudonym, person.background, person.assignment, lines, of_person)


def times(found: Sequence[Case]) -> Rows:
    """Hours by participant and row of the time sheet."""
    return [case.known_as | row for case in found for row in timesheet.rows(case.lines)]


def by_background(found: Sequence[Case]) -> Rows:
    """Hours by background and row: how many people, and their mean."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for case in found:
        for line in case.lines:
            groups.setdefault((case.background, line.row), []).append(line)
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


def choices(found: Sequence[Case]) -> Rows:
    """What people tried: their finished runs by method."""
    counted = [(case, Counter(run.method for run in runs.finished(case.runs))) for case in found]
    return [case.known_as | {"method": m, "runs": n} for case, methods in counted for m, n in methods.most_common()]


def preferences(opened: Session) -> Rows:
    """Which technique people prefer for what, and why."""
    asked = sorted((p for p in people.everybody(opened) if p.consented), key=lambda p: p.pseudonym)
    return [
        {"participant": p.pseudonym, "situation": kept.situation, "technique": kept.technique, "why": kept.why}
        for p in asked
        for kept in notes.preferences(opened, p)
    ]


def learning(found: Sequence[Case]) -> Rows:
    """Result against time spent: a row for every run, with the hours of runs up to its end, and the best so far."""
    return [row for case in found for row in _learning(case)]


def _learning(case: Case) -> Rows:
    rows, done, best = [], [], 0.0
    for run in runs.finished(case.runs):
        done.append(run)
        kept = next((v for name, v in run.metrics.items() if name.endswith("_kept")), None)
        ratio = run.metrics.get("compression_ratio")
        if kept is None or ratio is None:
            continue
        best = max(best, kept * ratio)
        spent = {"hours": round(runs.hours(done), 4), "method": run.method}
        reached = {"quality_kept": kept, "compression_ratio": ratio, "score": kept * ratio, "best_score": best}
        rows.append(case.known_as | spent | reached)
    return rows


def agreement(found: Sequence[Case]) -> Rows:
    """Self-reported against recorded hours of the rows that both know: their difference, and their ratio."""
    return [
        case.known_as
        | {
            "row": line.row,
            "clock_hours": round(line.clock_hours, 4),
            "run_hours": round(line.run_hours, 4),
            "difference": round(line.clock_hours - line.run_hours, 4),
            "ratio": round(line.clock_hours / line.run_hours, 4) if line.run_hours else "",
        }
        for case in found
        for line in case.lines
        if line.row != timesheet.OTHER and (line.clock_hours or line.run_hours)
    ]


def tables(opened: Session) -> dict[str, Rows]:
    """Every table of the analysis, by name."""
    found = cases(opened)
    consenting = [person for person in people.everybody(opened) if person.consented]
    return {
        "times": times(found),
        "times-by-background": by_background(found),
        "choices": choices(found),
        "preferences": preferences(opened),
        "learning": learning(found),
        "agreement": agreement(found),
        "questionnaires": questionnaires.rows(opened, consenting),
    }


def write(folder: Path) -> list[Path]:
    """Write every table as CSV and every picture as PNG into `folder`; what was written."""
    with store.session() as opened:
        made = tables(opened)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in made.items():
            (folder / f"{name}.csv").write_text(sheets.text(rows), encoding="utf-8")
        for name, figure in pictures.draw(made).items():
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
    except OSError as error:
        raise write_error(folder, error) from error
    return sorted(folder.iterdir())
