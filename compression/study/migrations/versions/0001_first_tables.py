"""Create the study's tables."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables and their indexes."""
    create("definitions", key(), moment(), text("content"))
    create_participants()
    create(
        "clock_events",
        *owned("clock_events"),
        sa.Column("number", sa.Integer, nullable=False),
        word("kind", 10),
        word("row"),
        sa.Column("hours", sa.Double, nullable=False),
        text("reason"),
        unique("clock_events", "number"),
    )
    create("stages_done", *owned("stages_done"), word("stage"), unique("stages_done", "stage"))
    create(
        "answers",
        *owned("answers"),
        word("questionnaire"),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("definition", sa.Integer, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        text("receipt"),
        sa.ForeignKeyConstraint(["definition"], ["definitions.id"], name="fk_answers_definition"),
        unique("answers", "questionnaire", "version"),
    )
    create("notes", *owned("notes"), text("text"), word("run", 64))
    create("preferences", *owned("preferences"), text("situation"), word("technique"), text("why"))
    for table in ("clock_events", "stages_done", "answers", "notes", "preferences"):
        op.create_index(f"ix_{table}_participant", table, ["participant"])


def create_participants() -> None:
    """Create the table of participants."""
    create(
        "participants",
        sa.Column("id", sa.String(40), nullable=False),
        word("pseudonym"),
        word("login", 255),
        word("background"),
        word("assignment"),
        word("language", 8),
        moment("invited"),
        sa.Column("consented", sa.DateTime),
        text("consent"),
        sa.UniqueConstraint("login", name="uq_participants_login"),
        sa.UniqueConstraint("pseudonym", name="uq_participants_pseudonym"),
    )


def create(table: str, *parts: Any) -> None:
    """Create a table with the primary key `id`; constraints are named, so that later migrations can drop them."""
    op.create_table(table, *parts, sa.PrimaryKeyConstraint("id", name=f"pk_{table}"))


def key() -> sa.Column[int]:
    """Return the column of the primary key."""
    return sa.Column("id", sa.Integer, nullable=False)


def moment(name: str = "at") -> sa.Column[datetime]:
    """Return a column of times in UTC."""
    return sa.Column(name, sa.DateTime, nullable=False)


def text(name: str) -> sa.Column[str]:
    """Return a column of texts of any length."""
    return sa.Column(name, sa.Text, nullable=False)


def word(name: str, length: int = 40) -> sa.Column[str]:
    """Return a column of texts of at most `length` characters."""
    return sa.Column(name, sa.String(length), nullable=False)


def owned(table: str) -> list[Any]:
    """Return the columns of every `ParticipantRecord`: key, time, and participant, with its foreign key."""
    foreign_key = sa.ForeignKeyConstraint(["participant"], ["participants.id"], name=f"fk_{table}_participant")
    return [key(), moment(), word("participant"), foreign_key]


def unique(table: str, *columns: str) -> sa.UniqueConstraint:
    """Return the constraint that `columns` differ for each participant."""
    return sa.UniqueConstraint("participant", *columns, name=f"uq_{table}_participant")
