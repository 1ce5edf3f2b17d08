"""The tables of the study's database. What participants enter is appended as new rows, never overwritten."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, MetaData, String, Text, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def utc_now() -> datetime:
    """Return the current time, with its time zone."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A time-zone-aware datetime, stored as naive UTC: SQLite has no time zones.

    UTC also keeps differences right across a change to daylight saving time.
    """

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert to naive UTC for the database."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Attach UTC to a value of the database."""
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Base of all tables; its naming convention gives constraints the names by which migrations refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON}


class Definition(Base):
    """A version of the study's YAML; the newest is in force."""

    __tablename__ = "definitions"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    content: Mapped[str] = mapped_column(Text)


class Participant(Base):
    """Somebody who was invited, under an id that is not their name."""

    __tablename__ = "participants"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    pseudonym: Mapped[str] = mapped_column(String(40), unique=True)
    login: Mapped[str] = mapped_column(String(255), unique=True)
    background: Mapped[str] = mapped_column(String(40))
    assignment: Mapped[str] = mapped_column(String(40))
    language: Mapped[str] = mapped_column(String(8))
    invited: Mapped[datetime] = mapped_column(default=utc_now)
    consented: Mapped[datetime | None]
    consent: Mapped[str] = mapped_column(Text, default="")  # the text that was agreed to


class ParticipantRecord(Base):
    """Base of tables whose rows belong to a participant; `forget` deletes from all its subclasses."""

    __abstract__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    participant: Mapped[str] = mapped_column(ForeignKey("participants.id"), index=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class ClockEvent(ParticipantRecord):
    """The start, pause, resume or stop of a row's clock (`kind`), or a correction of its hours (`correct`)."""

    __tablename__ = "clock_events"
    __table_args__ = (UniqueConstraint("participant", "number"),)  # simultaneous clicks cannot both be the next event
    number: Mapped[int]
    kind: Mapped[str] = mapped_column(String(10))
    row: Mapped[str] = mapped_column(String(40))
    hours: Mapped[float] = mapped_column(default=0.0)
    reason: Mapped[str] = mapped_column(Text, default="")


class CompletedStage(ParticipantRecord):
    """A stage that a participant has completed."""

    __tablename__ = "stages_done"
    __table_args__ = (UniqueConstraint("participant", "stage"),)
    stage: Mapped[str] = mapped_column(String(40))


class Answers(ParticipantRecord):
    """One version of a participant's answers to a questionnaire, or the receipt of its external form."""

    __tablename__ = "answers"
    # of two sent at once, one is refused
    __table_args__ = (UniqueConstraint("participant", "questionnaire", "version"),)
    questionnaire: Mapped[str] = mapped_column(String(40))
    version: Mapped[int]
    definition: Mapped[int] = mapped_column(ForeignKey("definitions.id"))  # the questions that were asked
    content: Mapped[dict[str, Any]]
    receipt: Mapped[str] = mapped_column(Text, default="")


class Note(ParticipantRecord):
    """An entry of a participant's journal, in Markdown; `run` is the id of the MLflow run it is about."""

    __tablename__ = "notes"
    text: Mapped[str] = mapped_column(Text)
    run: Mapped[str] = mapped_column(String(64), default="")


class Preference(ParticipantRecord):
    """The technique that a participant prefers for a situation, and why; the newest per situation counts."""

    __tablename__ = "preferences"
    situation: Mapped[str] = mapped_column(Text)
    technique: Mapped[str] = mapped_column(String(40))
    why: Mapped[str] = mapped_column(Text)
