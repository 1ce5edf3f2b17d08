"""The study's first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    make("definitions", key(), moment(), text("content"))
    make_participants()
    make("clock_events", *owned("clock_events"), sa.Column("number", sa.Integer, nullable=False), word("kind", 10),
         word("row"), sa.Column("hours", sa.Double, nullable=False), text("reason"),
         unique("clock_events", "number"))  # fmt: skip
    make("stages_done", *owned("stages_done"), word("stage"), unique("stages_done", "stage"))
    make("answers", *owned("answers"), word("questionnaire"), sa.Column("version", sa.Integer, nullable=False),
         sa.Column("definition", sa.Integer, nullable=False), sa.Column("content", sa.JSON, nullable=False),
         text("receipt"), sa.ForeignKeyConstraint(["definition"], ["definitions.id"], name="fk_answers_definition"),
         unique("answers", "questionnaire", "version"))  # fmt: skip
    make("notes", *owned("notes"), text("text"), word("run", 64))
    make("preferences", *owned("preferences"), text("situation"), word("technique"), text("why"))
    for table in ("clock_events", "stages_done", "answers", "notes", "preferences"):
        op.create_index(f"ix_{table}_participant", table, ["participant"])


def make_participants() -> None:
    make("participants", sa.Column("id", sa.String(40), nullable=False), word("pseudonym"), word("login", 255),
         word("background"), word("assignment"), word("language", 8), moment("invited"),
         sa.Column("consented", sa.DateTime), text("consent"),
         sa.UniqueConstraint("login", name="uq_participants_login"),
         sa.UniqueConstraint("pseudonym", name="uq_participants_pseudonym"))  # fmt: skip


def make(table: str, *parts: Any) -> None:
    """A table with the primary key `id`; foreign keys and constraints are named, so that later steps can drop them."""
    op.create_table(table, *parts, sa.PrimaryKeyConstraint("id", name=f"pk_{table}"))


def key() -> sa.Column:
    return sa.Column("id", sa.Integer, nullable=False)


def moment(name: str = "at") -> sa.Column:
    return sa.Column(name, sa.DateTime, nullable=False)


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def word(name: str, length: int = 40) -> sa.Column:
    return sa.Column(name, sa.String(length), nullable=False)


def owned(table: str) -> list[Any]:
    """What every row of somebody has: its key, when it was made, whose it is."""
    whose = sa.ForeignKeyConstraint(["participant"], ["participants.id"], name=f"fk_{table}_participant")
    return [key(), moment(), word("participant"), whose]


def unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint("participant", *columns, name=f"uq_{table}_participant")
