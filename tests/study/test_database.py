import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from compression.errors import UserError
from compression.study import database, definition, participants
from compression.study.tables import Base, UtcDateTime
from tests.study.conftest import join


def test_the_migrations_make_the_tables_that_the_code_reads(study):
    with database.engine(database.url()).connect() as connection:
        context = MigrationContext.configure(connection, opts={"render_as_batch": True, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_without_a_study_the_sentence_says_how_to_make_one(place):
    with pytest.raises(UserError, match="compression study create"), database.open_session():
        pass
    assert not (place / "home").exists()


def test_a_session_keeps_all_of_its_work_or_none(study):
    with pytest.raises(UserError, match="taken"), database.open_session() as session:
        participants.invite(join(session, "p07") and session, "p07", "student")
    with database.open_session() as session:
        assert participants.list_participants(session) == []


def test_a_new_definition_holds_and_what_is_kept_stays(lab):
    lab.join("p07")
    changed = definition.DEFAULT_FILE.read_text(encoding="utf-8").replace("idle_minutes: 60", "idle_minutes: 15")
    database.save_definition(changed)
    with database.open_session() as session:
        assert database.load_study(session).idle_minutes == 15
        assert [p.id for p in participants.list_participants(session)] == ["p07"]


def test_a_wrong_definition_leaves_the_one_before(study):
    with pytest.raises(UserError):
        database.save_definition("title: nothing")
    with database.open_session() as session:
        assert database.load_study(session) == study


def test_a_database_that_is_away_is_one_sentence_and_back_it_works(lab, place):
    lab.join("p07")
    file, away = place / "home" / "study.db", place / "away.db"
    file.rename(away)
    file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError) as refusal, database.open_session():
        pass
    assert "does not answer" in str(refusal.value)
    file.unlink()
    away.rename(file)
    with database.open_session() as session:
        assert participants.find(session, "p07").consented


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x/y", "postgresql+nodriver://u:secret@h/d"])
def test_an_address_that_cannot_be_used_is_one_sentence_without_the_password(place, monkeypatch, url):
    monkeypatch.setenv("COMPRESSION_STUDY_URL", url)
    with pytest.raises(UserError, match="COMPRESSION_STUDY_URL") as refusal, database.open_session():
        pass
    assert "secret" not in str(refusal.value)


def test_moments_come_back_as_utc_whatever_zone_they_went_in(session):
    from datetime import datetime, timedelta, timezone

    participant = join(session, "p07")
    participant.consented = datetime(2026, 3, 29, 3, 30, tzinfo=timezone(timedelta(hours=2)))
    session.flush()
    session.expire_all()
    assert participants.find(session, "p07").consented.isoformat() == "2026-03-29T01:30:00+00:00"
    assert UtcDateTime.impl is not None


def test_an_older_database_asks_for_an_upgrade(study, place):
    with sqlite3.connect(place / "home" / "study.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(UserError, match="compression study upgrade"), database.open_session():
        pass
