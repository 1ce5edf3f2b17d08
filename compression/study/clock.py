"""The clock of the time sheet: an append-only log of events in the database, replayed into hours.

Nothing has to keep running for it: a clock that was started runs until its next event, across reboots and crashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from compression.study import database, stages
from compression.study.tables import ClockEvent, utc_now
from compression.study.texts import StudyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from compression.study.tables import Participant

MAX_CORRECTION = 100.0  # hours
MAX_REASON = 2000  # characters of a correction's reason that are kept


@dataclass
class Clock:
    """The state of a participant's clock after a sequence of events."""

    row: str = ""  # the row of the time sheet that is running or paused; empty if none
    running_since: datetime | None = None  # None while it is paused or stopped
    last_event_at: datetime | None = None
    last_event_number: int = 0
    intervals: list[tuple[str, datetime, datetime]] = field(default_factory=list)  # row, start, end
    corrections: dict[str, float] = field(default_factory=dict)  # hours by row

    @property
    def is_running(self) -> bool:
        """Whether time is being counted now."""
        return self.running_since is not None

    def apply(self, event: ClockEvent) -> None:
        """Update the state by the next event; one that does not fit the state (a second stop) has no effect."""
        self.last_event_at, self.last_event_number = event.at, event.number
        if event.kind == "correct":
            self.corrections[event.row] = self.corrections.get(event.row, 0.0) + event.hours
        elif event.kind in ("start", "resume"):
            if event.row != self.row:
                self._end_interval(event.at)
            # A second start keeps the moment of the first.
            self.row, self.running_since = event.row, self.running_since or event.at
        # A pause or stop of another row comes too late: that row was left when this one started.
        elif event.row == self.row:
            self._end_interval(event.at)
            self.row = self.row if event.kind == "pause" else ""

    def _end_interval(self, at: datetime) -> None:
        if self.running_since is not None:
            self.intervals.append((self.row, self.running_since, max(at, self.running_since)))
        self.running_since = None

    def hours(self, row: str, until: datetime) -> float:
        """Return the hours of `row`, corrections included; if its clock is running, counted up to `until`."""
        spans = [end - start for interval_row, start, end in self.intervals if interval_row == row]
        if self.running_since is not None and self.row == row:
            spans.append(max(until - self.running_since, timedelta()))
        return sum(spans, timedelta()) / timedelta(hours=1) + self.corrections.get(row, 0.0)


def list_events(session: Session, participant: Participant) -> Sequence[ClockEvent]:
    """Return all clock events of `participant`, oldest first."""
    query = select(ClockEvent).where(ClockEvent.participant == participant.id).order_by(ClockEvent.number)
    return session.scalars(query).all()


def load(session: Session, participant: Participant) -> Clock:
    """Replay the clock events of `participant`."""
    clock = Clock()
    for event in list_events(session, participant):
        clock.apply(event)
    return clock


def start(session: Session, participant: Participant, row: str, at: datetime | None = None) -> bool:
    """Start the clock for `row` at `at` (by default now), which stops any other row.

    Returns False if it was running already: a double click changes nothing. Raises StudyError if there is no such row
    or its stage is not open yet.
    """
    stages.require_open(session, participant, database.load_study(session).stage_of_row(row))
    clock = load(session, participant)
    if clock.is_running and clock.row == row:
        return False
    # To start a paused row goes on with it.
    kind = "resume" if clock.row == row else "start"
    return _append(session, clock, participant=participant.id, kind=kind, row=row, at=at)


def pause(session: Session, participant: Participant, at: datetime | None = None) -> bool:
    """Pause the clock; False if it is paused already. Raises StudyError if none was started."""
    clock = _active_clock(session, participant)
    return clock.is_running and _append(session, clock, participant=participant.id, kind="pause", row=clock.row, at=at)


def resume(session: Session, participant: Participant, at: datetime | None = None) -> bool:
    """Resume a paused clock; False if it is running. Raises StudyError if none was started."""
    clock = _active_clock(session, participant)
    if clock.is_running:
        return False
    return _append(session, clock, participant=participant.id, kind="resume", row=clock.row, at=at)


def stop(session: Session, participant: Participant, at: datetime | None = None) -> str:
    """Stop the running or paused clock and return its row. Raises StudyError if none was started."""
    clock = _active_clock(session, participant)
    _append(session, clock, participant=participant.id, kind="stop", row=clock.row, at=at)
    return clock.row


def _active_clock(session: Session, participant: Participant) -> Clock:
    clock = load(session, participant)
    if not clock.row:
        raise StudyError("no_clock")
    return clock


def add_correction(session: Session, participant: Participant, row: str, hours: float, reason: str) -> float:
    """Add `hours` (negative to subtract) to `row` and return the hours it has then.

    Raises StudyError if there is no such row, no reason, if `hours` is 0, NaN or beyond MAX_CORRECTION, or if fewer
    than 0 hours would remain.
    """
    database.load_study(session).stage_of_row(row)
    if not reason.strip():
        raise StudyError("reason_missing")
    if not 0 < abs(hours) <= MAX_CORRECTION:  # NaN fails every comparison
        raise StudyError("bad_correction", most=f"{MAX_CORRECTION:g}")
    clock = load(session, participant)
    corrected = clock.hours(row, utc_now()) + hours
    if corrected < 0:
        raise StudyError("below_zero", row=row, hours=f"{corrected - hours:.2f}")
    values: dict[str, Any] = {"kind": "correct", "row": row, "hours": hours, "reason": reason.strip()[:MAX_REASON]}
    while not _append(session, clock, participant=participant.id, **values):
        clock = load(session, participant)  # another event came first; unlike a click, a correction must not be lost
    return corrected


def _append(session: Session, clock: Clock, at: datetime | None = None, **values: Any) -> bool:
    """Append the event that follows on the state `clock`; False if another process has appended one meanwhile.

    The unique constraint on the event's number detects that, so of two simultaneous clicks only one counts.
    """
    # No event is earlier than the one before it: a computer's clock may be set back.
    at = max(moment for moment in (at or utc_now(), clock.last_event_at) if moment)
    event = ClockEvent(number=clock.last_event_number + 1, at=at, **values)
    try:
        # A savepoint: a refused event must not roll back what else the session has done.
        with session.begin_nested():
            session.add(event)
    except IntegrityError:
        return False
    return True


def hours_if_idle(session: Session, participant: Participant) -> float | None:
    """Return the hours since the running clock's last event.

    None if no clock is running, or if they are fewer than the study's `idle_minutes`.
    """
    clock = load(session, participant)
    if not clock.is_running or clock.last_event_at is None:
        return None
    hours = (utc_now() - clock.last_event_at) / timedelta(hours=1)
    return hours if hours * 60 > database.load_study(session).idle_minutes else None
