"""The analysis under pseudonyms, and forgetting somebody everywhere."""

import csv
import io
import json
from datetime import timedelta

import mlflow
import pytest

from compression import tracking
from compression.errors import UserError
from compression.study import (
    analysis,
    clock,
    database,
    figures,
    forget,
    launches,
    notes,
    participant_runs,
    participants,
    questionnaires,
)
from compression.study.tables import CompletedStage
from compression.tracking.run import run_folder
from tests.study.conftest import answers_for, join
from tests.study.test_runs import NOON, record  # noqa: F401


@pytest.fixture
def busy(lab, record):  # noqa: F811
    """p07, an engineer, and p08, a student, who both did something; p09, who was only invited."""
    client = mlflow.MlflowClient()
    with database.open_session() as session:
        for id, background in (("p07", "engineer"), ("p08", "student")):
            participant = join(session, id, background=background)
            questionnaires.append_answers(
                session, participant, "before", answers_for(database.load_study(session).questionnaires["before"])
            )
            for stage in database.load_study(session).stages[1:4]:
                session.add(CompletedStage(participant=participant.id, stage=stage.name))
            session.flush()
            clock.start(session, participant, "tune/pruning", NOON)
            clock.stop(session, participant, NOON + timedelta(hours=3))
            notes.add_note(session, participant, f"I am {id}")
            notes.add_preference(session, participant, "a phone", "pruning", "small")
        participants.invite(session, "p09", "student")
    for id in ("p07", "p08"):
        for at, kept in ((0, 0.9), (1, 0.8)):
            run = record(id, hours=1, at=at)
            client.log_metric(run, "accuracy_kept", kept)
            client.log_metric(run, "compression_ratio", 2.0)
    return client


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_analysis_has_times_choices_learning_and_agreement_under_pseudonyms(busy, tmp_path):
    written = {path.name: path for path in analysis.write_analysis(tmp_path / "out")}
    assert {"times.csv", "choices.csv", "learning.csv", "learning.png", "agreement.csv", "agreement.png"} <= set(
        written
    )
    with database.open_session() as session:
        pseudonym = participants.find(session, "p07").pseudonym
    own = [row for row in read(written["agreement.csv"]) if row["participant"] == pseudonym]
    assert [(r["row"], r["clock_hours"], r["run_hours"], r["ratio"]) for r in own] == [
        ("tune/pruning", "3.0", "2.0", "1.5")
    ]
    curve = [r for r in read(written["learning.csv"]) if r["participant"] == pseudonym]
    assert [(r["hours"], r["best_score"]) for r in curve] == [("1.0", "1.8"), ("2.0", "1.8")]
    [means] = [
        r
        for r in read(written["times-by-background.csv"])
        if (r["background"], r["row"]) == ("engineer", "tune/pruning")
    ]
    assert (means["people"], means["mean_clock_hours"]) == ("1", "3.0")
    for path in written.values():
        ids = [id for id in ("p07", "p08", "p09") if path.suffix == ".csv" and id in path.read_text(encoding="utf-8")]
        assert ids == [], path


def test_people_come_in_an_order_that_says_nothing_of_their_ids(busy):
    with database.open_session() as session:
        names = [person.pseudonym for person in analysis.load_participants(session)]
    assert names == sorted(names)
    assert len(names) == 2


def test_with_nobody_there_the_tables_are_empty_and_no_picture_is_drawn(study, tmp_path):
    assert all(path.suffix == ".csv" for path in analysis.write_analysis(tmp_path / "out"))
    assert figures.draw_figures(dict.fromkeys(("times-by-background", "learning", "agreement", "choices"), [])) == {}


def test_forgetting_removes_a_person_everywhere_and_nobody_else(busy, place):
    with tracking.start_run(name="another", tags={"participant": "p07"}) as run:
        run.metrics({"loss": 1.0})
        run.artifact(__file__)
    [artifact] = (place / "mlruns").rglob("test_analysis.py")
    run_folder("waiting").mkdir(parents=True)
    (run_folder("waiting") / "run.json").write_text(json.dumps({"make": {"tags": {"participant": "p07"}}}))
    launches.launch_folder("p07").mkdir(parents=True)
    traces = {deletion.place: deletion for deletion in forget.forget("p07")}
    assert {name: deletion.after for name, deletion in traces.items()} == dict.fromkeys(traces, 0)
    assert traces["runs"].before == 3
    assert traces["clock_events"].before == 2
    assert traces["folders"].before == 2
    assert not artifact.exists()
    assert b"p07" not in (place / "home" / "study.db").read_bytes()
    assert len(participant_runs.load_runs("p08")) == 2
    with database.open_session() as session:
        assert [p.id for p in participants.list_participants(session)] == ["p08", "p09"]


def test_forgetting_nobody_is_one_sentence(study):
    with pytest.raises(UserError, match="Nobody goes by 'p99'"):
        forget.forget("p99")


def test_every_table_of_somebody_is_known_to_forget():
    assert {t.__tablename__ for t in forget.participant_tables()} == {
        "answers",
        "clock_events",
        "notes",
        "preferences",
        "stages_done",
    }
