"""The clock: an append-only log of events in the database, folded into hours. No process has to live for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compression.study import stages, store
from compression.study.tables import ClockEvent, Participant, now
from compression.study.texts import Refused

MAX_CORRECTION = 100.0  # hours


@dataclass
class Clock:
    """What a log of events comes to."""

    row: str = ""  # the row that is running or paused; empty if none
    since: datetime | None = None  # when it began to run; None while it is paused
    last: datetime | None = None  # the last event
    number: int = 0  # its number
    intervals: list[tuple[str, datetime, datetime]] = field(default_factory=list)  # row, from, to
    corrections: dict[str, float] = field(default_factory=dict)  # row -> hours

    @property
    def running(self) -> bool:
        return self.since is not None

    def take(self, event: ClockEvent) -> None:
        """One event more, in the order they happened; one that changes nothing counts for nothing."""
        self.last, self.number = event.at, event.number
        if event.kind == "correct":
            self.corrections[event.row] = self.corrections.get(event.row, 0.0) + event.hours
        elif event.kind in ("start", "resume"):
            if event.row != self.row:
                self._stop(event.at)
            self.row, self.since = event.row, self.since or event.at
        elif event.row == self.row:
            self._stop(event.at)
            self.row = self.row if event.kind == "pause" else ""

    def _stop(self, at: datetime) -> None:
        if self.since is not None:
            self.intervals.append((self.row, self.since, max(at, self.since)))
        self.since = None

    def hours(self, row: str, until: datetime) -> float:
        """The hours of `row`, corrections included, with what runs counted up to `until`."""
        spans = [end - start for of, start, end in self.intervals if of == row]
        if self.since is not None and self.row == row:
            spans.append(max(until - self.since, timedelta()))
        return sum(spans, timedelta()) / timedelta(hours=1) + self.corrections.get(row, 0.0)


def events(opened: Session, person: Participant) -> Sequence[ClockEvent]:
    """Everything that was ever recorded of `person`, oldest first."""
    asked = select(ClockEvent).where(ClockEvent.participant == person.id).order_by(ClockEvent.number)
    return opened.scalars(asked).all()


def read(opened: Session, person: Participant) -> Clock:
    """The clock of `person`."""
    clock = Clock()
    for event in events(opened, person):
        clock.take(event)
    return clock


def start(opened: Session, person: Participant, row: str, at: datetime | None = None) -> bool:
    """Run the clock for `row`, instead of any other; False if it ran already (a double click changes nothing)."""
    stages.require_open(opened, person, store.study(opened).stage_of_row(row))
    clock = read(opened, person)
    if clock.running and clock.row == row:
        return False
    return _append(opened, clock, participant=person.id, kind="resume" if clock.row == row else "start", row=row, at=at)


def pause(opened: Session, person: Participant, at: datetime | None = None) -> bool:
    """Hold the clock; False if it is held already."""
    clock = _going(opened, person)
    return clock.running and _append(opened, clock, participant=person.id, kind="pause", row=clock.row, at=at)


def resume(opened: Session, person: Participant, at: datetime | None = None) -> bool:
    """Go on after a pause; False if it runs."""
    clock = _going(opened, person)
    return not clock.running and _append(opened, clock, participant=person.id, kind="resume", row=clock.row, at=at)


def stop(opened: Session, person: Participant, at: datetime | None = None) -> str:
    """End what runs or pauses; the row that ended."""
    clock = _going(opened, person)
    _append(opened, clock, participant=person.id, kind="stop", row=clock.row, at=at)
    return clock.row


def _going(opened: Session, person: Participant) -> Clock:
    clock = read(opened, person)
    if not clock.row:
        raise Refused("no_clock")
    return clock


def correct(opened: Session, person: Participant, row: str, hours: float, reason: str) -> float:
    """Add `hours` (less than zero to take away) to `row` with the reason why; the row's hours after it."""
    store.study(opened).stage_of_row(row)
    if not reason.strip():
        raise Refused("reason_missing")
    if not 0 < abs(hours) <= MAX_CORRECTION:  # also refuses what is not a number
        raise Refused("bad_correction", most=f"{MAX_CORRECTION:g}")
    clock = read(opened, person)
    left = clock.hours(row, now()) + hours
    if left < 0:
        raise Refused("below_zero", row=row, hours=f"{left - hours:.2f}")
    said: dict[str, Any] = {"kind": "correct", "row": row, "hours": hours, "reason": reason.strip()[:2000]}
    while not _append(opened, clock, participant=person.id, **said):
        clock = read(opened, person)  # another event came first; a correction is never dropped
    return left


def _append(opened: Session, read: Clock, at: datetime | None = None, **said: Any) -> bool:
    """Write the event that follows on what was `read`; False if another has followed meanwhile (a second click)."""
    moments = [moment for moment in (at or now(), read.last) if moment]
    event = ClockEvent(number=read.number + 1, at=max(moments), **said)  # a computer's clock may be set back
    try:
        with opened.begin_nested():
            opened.add(event)
    except IntegrityError:
        return False
    return True


def idle_hours(opened: Session, person: Participant, sign_of_life: datetime | None = None) -> float | None:
    """How long the running clock has seen no sign of life, if it is longer than the study allows; else None."""
    clock = read(opened, person)
    if not clock.running:
        return None
    latest = max(moment for moment in (clock.last, sign_of_life) if moment)
    hours = (now() - latest) / timedelta(hours=1)
    return hours if hours * 60 > store.study(opened).idle_minutes else None
