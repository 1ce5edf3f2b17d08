"""The study's database: its URL, its migrations, and sessions on it."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from compression.errors import UserError, first_line
from compression.extras import explain_missing
from compression.study import definition
from compression.study.private import make_private
from compression.study.tables import Definition
from compression.study.texts import StudyError
from compression.tracking.journal import home, write_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compression.study.definition import Study

MIGRATIONS = Path(__file__).parent / "migrations"


def url() -> str:
    """Return COMPRESSION_STUDY_URL, or by default the URL of a SQLite file in the lab's own folder."""
    return os.environ.get("COMPRESSION_STUDY_URL") or f"sqlite:///{home() / 'study.db'}"


def exists() -> bool:
    """Whether this machine has the study's SQLite file, or COMPRESSION_STUDY_URL names a database server.

    Raises UserError if the URL cannot be used.
    """
    path = local_file()
    return path is None or path.exists()


def local_file() -> Path | None:
    """Return the path of a SQLite database, which need not be there; None for a database server. Raises UserError."""
    address = engine(url()).url
    return Path(address.database) if address.database and address.get_backend_name() == "sqlite" else None


def redacted_url() -> str:
    """Return the URL without its password."""
    return make_url(url()).render_as_string(hide_password=True)


@functools.cache
def engine(database_url: str) -> Engine:
    """Return the engine for `database_url`, one per process. Raises UserError if the URL cannot be used."""
    try:
        # Connections are made anew (SQLite) or tested before use, so that a database that was away is found again.
        pool = {"poolclass": NullPool} if database_url.startswith("sqlite") else {"pool_pre_ping": True}
        with explain_missing():
            created = create_engine(database_url, **pool)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UserError(
            f"COMPRESSION_STUDY_URL cannot be used ({first_line(error)}); "
            "it is written sqlite:///FILE or postgresql+psycopg2://USER:PASSWORD@HOST/NAME."
        ) from error
    if created.dialect.name == "sqlite":
        event.listen(created, "connect", _prepare_sqlite)
    return created


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 10000")  # milliseconds that one writer waits for another
    connection.execute("PRAGMA secure_delete = ON")  # deleted data is overwritten, not left in the file's free pages


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    """Turn the errors of an unavailable or broken database into a StudyError without its password."""
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError):
        raise  # an error in our code, not a database that is away
    except DBAPIError as error:
        raise StudyError("database_away", url=redacted_url(), reason=first_line(error.orig or error)) from error


@contextlib.contextmanager
def open_session() -> Iterator[Session]:
    """Yield a session in a transaction: it is committed at the end of the block, and rolled back if that raises.

    Loaded objects can still be read after the block. Raises StudyError if the database does not answer, has no study,
    or has tables of another version of this code.
    """
    with _connection_errors():
        found = engine(url())
        _require_tables(found)
        with Session(found, expire_on_commit=False) as session, session.begin():
            yield session


def _require_tables(found: Engine) -> None:
    if not exists():  # connecting would create the file
        raise StudyError("no_study")
    with found.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        raise StudyError("no_study")
    if revision != head_revision():
        raise StudyError("old_tables")


@functools.cache
def head_revision() -> str | None:
    """Return the newest migration in this code."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head()


def upgrade() -> None:
    """Create the tables, or migrate those of an earlier version, without loss of data.

    Raises StudyError if the database does not answer, UserError if its folder cannot be created.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    if (path := local_file()) is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # SQLite would create it for everybody to read
            make_private(path)
        except OSError as error:
            raise write_error(path.parent, error) from error
    # One transaction: on PostgreSQL, a migration that fails leaves nothing behind. The connection is handed over, since
    # Alembic's configuration would take a % in a password for its own.
    with _connection_errors(), engine(url()).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def save_definition(content: str) -> Study:
    """Save the YAML `content` as the newest definition of the study. Raises UserError if it is invalid."""
    study = definition.parse_study(content)
    upgrade()
    with open_session() as session:
        session.add(Definition(content=content))
    return study


def has_definition() -> bool:
    """Whether a study is defined; the tables are created or migrated first."""
    upgrade()
    with open_session() as session:
        return session.scalars(select(Definition.id).limit(1)).first() is not None


def latest_definition(session: Session) -> Definition:
    """Return the definition that is in force. Raises StudyError if there is none."""
    latest = session.scalars(select(Definition).order_by(Definition.id.desc()).limit(1)).first()
    if latest is None:
        raise StudyError("no_study")
    return latest


def load_study(session: Session) -> Study:
    """Return the study in force; parsing it again costs nothing, as it is cached. Raises StudyError without one."""
    return definition.parse_study(latest_definition(session).content)
