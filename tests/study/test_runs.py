"""Runs of participants, in a real MLflow store."""

from datetime import UTC, datetime, timedelta

import mlflow
import pytest

from compression import tracking
from compression.study import clock, database, participant_runs, participants, timesheet
from compression.study.observer import StudyObserver
from tests.study.conftest import join

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.fixture
def record(study):
    """`record("p07", "prune", hours=1, at=0)`: a run in MLflow that began `at` hours after noon; its id."""
    client = mlflow.MlflowClient()

    def made(participant, family="prune", hours=1.0, at=0.0, stage="practice", status="FINISHED", **tags):
        start = NOON + timedelta(hours=at)
        said = {"participant": participant, "family": family, "method": tags.pop("method", "magnitude")}
        said |= {"participant.stage": stage, "participant.time_hours": f"{hours}"} | tags
        run = client.create_run("0", int(start.timestamp() * 1000), said, "a run")
        if status != "RUNNING":
            client.set_terminated(run.info.run_id, status, int((start + timedelta(hours=hours)).timestamp() * 1000))
        return run.info.run_id

    return made


def lines(participant, until="after"):
    with database.open_session() as session:
        return {
            line.row: line
            for line in timesheet.build_timesheet(
                session, participants.find(session, participant), participant_runs.load_runs(participant)
            )
        }


def test_overlapping_runs_count_once_and_children_lie_in_their_parents(lab, record):
    lab.join("p07", until="after")
    parent = record("p07", hours=2)
    record("p07", hours=2, at=1)
    record("p07", hours=1, at=1.5)  # within both
    record("p07", hours=1, at=6)
    record("p07", family="train", hours=2, **{"mlflow.parentRunId": parent})
    assert lines("p07")["tune/pruning"].run_hours == pytest.approx(3 + 1)


def test_runs_count_for_the_row_of_their_stage_and_families_and_the_rest_is_shown(lab, record):
    lab.join("p07", until="after")
    record("p07", "prune+train", stage="learning")
    record("p07", "prune+distill")
    record("p07", "", stage="learning", hours=0.5)
    record("p07", "quantize", stage="before", hours=0.25)
    record("p08", "quantize")
    found = lines("p07")
    assert {row: line.run_hours for row, line in found.items() if line.run_hours} == pytest.approx(
        {"learn/pruning": 1, "combine": 1, "learn/models": 0.5, "other": 0.25}
    )
    assert len(found) == 8 + 1


def test_a_run_whose_end_nobody_knows_counts_nothing_and_a_failed_one_counts(lab, record):
    lab.join("p07", until="after")
    record("p07", status="RUNNING")
    record("p07", status="FAILED", hours=0.75)
    assert lines("p07")["tune/pruning"].run_hours == pytest.approx(0.75)


def test_the_clock_and_the_runs_stand_side_by_side(lab, record):
    lab.join("p07", until="after")
    record("p07", hours=1)
    with database.open_session() as session:
        participant = participants.find(session, "p07")
        clock.start(session, participant, "tune/pruning", NOON)
        clock.stop(session, participant, NOON + timedelta(hours=3))
        clock.add_correction(session, participant, "tune/pruning", -0.5, "lunch")
    line = lines("p07")["tune/pruning"]
    assert (line.clock_hours, line.corrected_hours, line.run_hours) == pytest.approx((2.5, -0.5, 1))


def test_a_run_is_tagged_with_the_stage_and_the_total_of_its_method(lab, record):
    lab.join("p07", until="practice")
    record("p07", hours=2)
    record("p07", hours=1, at=1.5)
    record("p07", hours=8, method="static")
    with tracking.start_run(name="a run", tags={"participant": "p07", "method": "magnitude"}) as run:
        StudyObserver().started(run, "p07")
        StudyObserver().ended(run, "p07", "magnitude")
        id = run.id
    tags = tracking.get_run(id).tags
    assert tags["participant.stage"] == "practice"
    assert 2.5 < float(tags["participant.method_hours"]) < 2.5 + 1  # and what this test process has lived


class Listener:
    id = "none"

    def __init__(self):
        self.tags, self.warnings = {}, []

    def tag(self, name, value):
        self.tags[name] = value

    def warn(self, sentence):
        self.warnings.append(sentence)


def test_where_there_is_no_study_a_run_says_nothing_of_one(place):
    run = Listener()
    StudyObserver().started(run, "p07")
    StudyObserver().started(run, "")
    StudyObserver().ended(run, "", "magnitude")
    assert (run.tags, run.warnings) == ({}, [])


def test_a_study_that_is_away_or_knows_nobody_warns_and_fails_no_run(study, place):
    run = Listener()
    StudyObserver().started(run, "p99")
    (place / "home" / "study.db").write_bytes(b"x" * 5000)
    StudyObserver().started(run, "p07")
    assert run.tags == {}
    assert "Nobody goes by 'p99'" in run.warnings[0]
    assert "does not answer" in run.warnings[1]


@pytest.mark.parametrize(
    ("spans", "total"), [([], 0), ([(0, 1), (2, 3)], 2), ([(0, 4), (1, 2)], 4), ([(1, 3), (0, 2), (3, 4)], 4)]
)
def test_the_union_of_intervals_is_what_they_cover_together(spans, total):
    found = [(NOON + timedelta(hours=a), NOON + timedelta(hours=b)) for a, b in spans]
    assert participant_runs.covered_hours(found) == pytest.approx(total)


def test_the_latest_run_is_a_sign_of_life(session, record):
    join(session, "p07")
    record("p07", hours=1, at=2)
    assert participant_runs.last_activity(participant_runs.load_runs("p07")) == NOON + timedelta(hours=3)
    assert participant_runs.last_activity([]) is None
