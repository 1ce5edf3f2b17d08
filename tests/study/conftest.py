"""A study of its own for every test: a SQLite file, a tracking store, and people in it."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from compression.study import database, definition, participants, stages, texts


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder in which this test's lab, study and tracking store lie."""
    monkeypatch.setenv("COMPRESSION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # of the runs that pages start: idle threads do not spin
    for name in ("COMPRESSION_STUDY_URL", "COMPRESSION_PARTICIPANT", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    token = texts.language.set("en")
    yield tmp_path
    texts.language.reset(token)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A database with the shipped study, made once; every test takes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("study")
        patch.setenv("COMPRESSION_HOME", str(home))
        patch.delenv("COMPRESSION_STUDY_URL", raising=False)
        database.save_definition(definition.DEFAULT_FILE.read_text(encoding="utf-8"))
        database.engine(database.url()).dispose()
    return home / "study.db"


@pytest.fixture
def study(place, made):
    """The shipped study, with nobody in it."""
    (place / "home").mkdir()
    shutil.copy(made, place / "home")
    with database.open_session() as session:
        return database.load_study(session)


@pytest.fixture
def session(study):
    with database.open_session() as session:
        yield session


def join(session, id="p07", until="", **changes):
    """A participant who consented and has done every stage before `until` (none if it is empty)."""
    return go_on(session, participants.invite(session, id, changes.pop("background", "student"), **changes), until)


def go_on(session, participant, until):
    participants.record_consent(session, participant)
    for stage in database.load_study(session).stages if until else []:
        if stage.name == until:
            break
        stages.complete(session, participant, stage)
    return participant


def answers_for(questionnaire) -> dict[str, list[str]]:
    """What a form with the first choice everywhere would send."""
    first = {"text": ["a word"]}
    return {
        q.name: first.get(q.kind) or ([str(q.low)] if q.kind == "scale" else [next(iter(q.choices))])
        for q in questionnaire.questions
    }


@pytest.fixture
def lab(study):
    """`lab.join("p07", until="practice")` in a session of its own."""

    def joined(*args, **kwargs):
        with database.open_session() as session:
            return join(session, *args, **kwargs)

    return SimpleNamespace(join=joined, study=study)
