"""The tables of the study's database. Times are UTC; what a participant said is added to, never overwritten."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, MetaData, String, Text, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def now() -> datetime:
    return datetime.now(UTC)


class Instant(TypeDecorator[datetime]):
    """A moment, stored as UTC: SQLite keeps no time zones, and a day of 23 hours must not bend anybody's clock."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {datetime: Instant, dict[str, Any]: JSON}  # noqa: RUF012


class Definition(Base):
    """A version of the study's YAML; the newest holds."""

    __tablename__ = "definitions"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    content: Mapped[str] = mapped_column(Text)


class Participant(Base):
    __tablename__ = "participants"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    pseudonym: Mapped[str] = mapped_column(String(40), unique=True)
    login: Mapped[str] = mapped_column(String(255), unique=True)
    background: Mapped[str] = mapped_column(String(40))
    assignment: Mapped[str] = mapped_column(String(40))
    language: Mapped[str] = mapped_column(String(8))
    invited: Mapped[datetime] = mapped_column(default=now)
    consented: Mapped[datetime | None]
    consent: Mapped[str] = mapped_column(Text, default="")  # the text that was agreed to


class OfParticipant(Base):
    """A row that belongs to somebody. `compression.study.forget` finds all such tables by this class."""

    __abstract__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    participant: Mapped[str] = mapped_column(ForeignKey("participants.id"), index=True)
    at: Mapped[datetime] = mapped_column(default=now)


class ClockEvent(OfParticipant):
    """start, pause, resume, stop of a row, or a correction of its hours with the reason."""

    __tablename__ = "clock_events"
    __table_args__ = (UniqueConstraint("participant", "number"),)  # two clicks at once cannot both be the next event
    number: Mapped[int]
    kind: Mapped[str] = mapped_column(String(10))
    row: Mapped[str] = mapped_column(String(40))
    hours: Mapped[float] = mapped_column(default=0.0)
    reason: Mapped[str] = mapped_column(Text, default="")


class StageDone(OfParticipant):
    __tablename__ = "stages_done"
    __table_args__ = (UniqueConstraint("participant", "stage"),)
    stage: Mapped[str] = mapped_column(String(40))


class Answers(OfParticipant):
    """One version of somebody's answers to a questionnaire, or the receipt of the outside form."""

    __tablename__ = "answers"
    __table_args__ = (UniqueConstraint("participant", "questionnaire", "version"),)
    questionnaire: Mapped[str] = mapped_column(String(40))
    version: Mapped[int]
    definition: Mapped[int] = mapped_column(ForeignKey("definitions.id"))
    content: Mapped[dict[str, Any]]
    receipt: Mapped[str] = mapped_column(Text, default="")


class Note(OfParticipant):
    __tablename__ = "notes"
    text: Mapped[str] = mapped_column(Text)
    run: Mapped[str] = mapped_column(String(64), default="")


class Preference(OfParticipant):
    """Which technique is preferred for which situation, and why; the newest per situation holds."""

    __tablename__ = "preferences"
    situation: Mapped[str] = mapped_column(Text)
    technique: Mapped[str] = mapped_column(String(40))
    why: Mapped[str] = mapped_column(Text)
