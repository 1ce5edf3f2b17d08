"""The study's database: where it is, its tables, and a session in which things are asked and kept."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from compression.errors import UserError, first_line
from compression.study import definition
from compression.study.definition import Study
from compression.study.tables import Definition
from compression.study.texts import Refused
from compression.tracking.journal import home, write_error

MIGRATIONS = Path(__file__).parent / "migrations"


def url() -> str:
    """COMPRESSION_STUDY_URL, or a SQLite file in the lab's own folder."""
    return os.environ.get("COMPRESSION_STUDY_URL") or f"sqlite:///{home() / 'study.db'}"


def public_url() -> str:
    """The same without a password, to be shown."""
    return make_url(url()).render_as_string(hide_password=True)


@functools.cache
def engine(address: str) -> Engine:
    """The connections to a database; they are tried before use, so that one that was away is found again."""
    try:
        # A SQLite file is opened anew each time: one that was put back in its place is found again.
        pool = {"poolclass": NullPool} if address.startswith("sqlite") else {"pool_pre_ping": True}
        made = create_engine(address, **pool)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UserError(
            f"COMPRESSION_STUDY_URL cannot be used ({first_line(error)}); "
            "it is written sqlite:///FILE or postgresql+psycopg2://USER:PASSWORD@HOST/NAME."
        ) from error
    if made.dialect.name == "sqlite":
        event.listen(made, "connect", _prepare_sqlite)
    return made


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 10000")  # milliseconds that one writer waits for another
    connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in the file's free pages


@contextlib.contextmanager
def answering(address: str) -> Iterator[None]:
    """Whatever a database that is away raises becomes one sentence, without its password."""
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError):
        raise  # a mistake of ours, not of the database
    except DBAPIError as error:
        raise Refused("database_away", url=public_url(), reason=first_line(error.orig or error)) from error


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """A session whose work is kept as a whole when the block ends, and not at all if it raises."""
    address = url()
    with answering(address):
        _require_tables(engine(address))
        with Session(engine(address), expire_on_commit=False) as opened, opened.begin():
            yield opened


def _require_tables(found: Engine) -> None:
    path = found.url.database if found.dialect.name == "sqlite" else None
    if path and not Path(path).exists():
        raise Refused("no_study")
    with found.connect() as connection:
        at = MigrationContext.configure(connection).get_current_revision()
    if at is None:
        raise Refused("no_study")
    if at != newest():
        raise Refused("old_tables")


@functools.cache
def newest() -> str | None:
    """The newest revision of the tables that this code knows."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head()


def upgrade() -> None:
    """Make the tables, or bring those of an earlier version up to date; nothing that is kept is lost."""
    address = url()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    if make_url(address).get_backend_name() == "sqlite":
        _make_folder(Path(make_url(address).database or ""))
    with answering(address), engine(address).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(file.parent, error) from error


def define(content: str) -> Study:
    """Keep `content` as the study's newest definition; a UserError, and nothing kept, if it is not one."""
    study = definition.read(content)
    upgrade()
    with session() as opened:
        opened.add(Definition(content=content))
    return study


def defined() -> bool:
    """Whether there is a study; its tables are made, or brought up to date."""
    upgrade()
    with session() as opened:
        return opened.scalars(select(Definition.id).limit(1)).first() is not None


def newest_definition(opened: Session) -> Definition:
    """The definition that holds; refused where there is none yet."""
    found = opened.scalars(select(Definition).order_by(Definition.id.desc()).limit(1)).first()
    if found is None:
        raise Refused("no_study")
    return found


def study(opened: Session) -> Study:
    return definition.read(newest_definition(opened).content)
