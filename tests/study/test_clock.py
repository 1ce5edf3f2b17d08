import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from compression.errors import UserError
from compression.study import clock, database, participants
from compression.study.tables import ClockEvent, utc_now
from tests.study.conftest import join


@pytest.fixture
def participant(session):
    return join(session, "p07", until="after")


def berlin(*when):
    return datetime(*when, tzinfo=ZoneInfo("Europe/Berlin"))


def hours(session, participant, row, until=None):
    return clock.load(session, participant).hours(row, until or utc_now())


def test_pauses_do_not_count(session, participant):
    at = berlin(2026, 5, 4, 9)
    clock.start(session, participant, "learn/pruning", at)
    clock.pause(session, participant, at + timedelta(hours=1))
    clock.resume(session, participant, at + timedelta(hours=3))
    assert clock.stop(session, participant, at + timedelta(hours=3.5)) == "learn/pruning"
    assert hours(session, participant, "learn/pruning") == pytest.approx(1.5)


def test_a_clock_over_midnight_and_both_changes_of_daylight_saving_counts_the_hours_that_passed(session, participant):
    clock.start(session, participant, "tune/pruning", berlin(2026, 3, 28, 23))
    clock.stop(session, participant, berlin(2026, 3, 29, 4))  # 02:00 to 03:00 did not happen
    clock.start(session, participant, "tune/distillation", berlin(2026, 10, 24, 23))
    clock.stop(session, participant, berlin(2026, 10, 25, 4))  # 02:00 to 03:00 happened twice
    session.expire_all()
    assert hours(session, participant, "tune/pruning") == pytest.approx(4)
    assert hours(session, participant, "tune/distillation") == pytest.approx(6)


def test_starting_another_row_ends_the_one_before(session, participant):
    at = berlin(2026, 5, 4, 9)
    clock.start(session, participant, "learn/pruning", at)
    clock.start(session, participant, "learn/quantization", at + timedelta(hours=2))
    assert hours(session, participant, "learn/pruning") == pytest.approx(2)
    assert clock.load(session, participant).row == "learn/quantization"
    clock.pause(session, participant, at + timedelta(hours=3))
    clock.start(session, participant, "learn/pruning", at + timedelta(hours=5))
    clock.stop(session, participant, at + timedelta(hours=6))
    assert hours(session, participant, "learn/pruning") == pytest.approx(3)
    assert hours(session, participant, "learn/quantization") == pytest.approx(1)


def test_a_second_start_changes_nothing(session, participant):
    at = berlin(2026, 5, 4, 9)
    assert clock.start(session, participant, "learn/pruning", at)
    assert not clock.start(session, participant, "learn/pruning", at + timedelta(minutes=1))
    assert len(clock.list_events(session, participant)) == 1
    assert not clock.resume(session, participant)
    assert clock.pause(session, participant)
    assert not clock.pause(session, participant)


def test_two_starts_at_the_same_moment_leave_one(lab):
    lab.join("p07", until="after")
    gate = threading.Barrier(2)

    def click():
        with database.open_session() as session:
            participant = participants.find(session, "p07")
            gate.wait(10)
            clock.start(session, participant, "learn/pruning")

    with ThreadPoolExecutor(2) as pool:
        clicks = [pool.submit(click) for _ in range(2)]
    assert [clicked.exception() for clicked in clicks] == [None, None]
    with database.open_session() as session:
        assert [e.kind for e in clock.list_events(session, participants.find(session, "p07"))] == ["start"]


def test_a_log_that_holds_an_event_twice_counts_once():
    at = utc_now()
    log = [("start", 0), ("start", 1), ("stop", 2), ("stop", 3), ("pause", 4), ("resume", 5), ("stop", 6)]
    read = clock.Clock()
    for number, (kind, hour) in enumerate(log):
        read.apply(ClockEvent(number=number, kind=kind, row="combine", at=at + timedelta(hours=hour), hours=0.0))
    assert read.hours("combine", at + timedelta(hours=9)) == pytest.approx(2 + 1)


def test_the_clock_runs_on_when_every_process_is_gone(lab):
    lab.join("p07", until="after")
    with database.open_session() as session:
        clock.start(session, participants.find(session, "p07"), "combine", utc_now() - timedelta(hours=2))
    database.engine(database.url()).dispose()
    database.engine.cache_clear()
    with database.open_session() as session:
        found = clock.load(session, participants.find(session, "p07"))
        assert found.is_running
        assert found.hours("combine", utc_now()) == pytest.approx(2, abs=0.01)


def test_corrections_add_to_the_log_with_their_reason_and_change_no_event(session, participant):
    at = utc_now() - timedelta(hours=5)
    clock.start(session, participant, "learn/pruning", at)
    clock.stop(session, participant, at + timedelta(hours=4))
    assert clock.add_correction(session, participant, "learn/pruning", -2.5, "forgot to stop") == pytest.approx(1.5)
    assert clock.add_correction(session, participant, "combine", 0.25, "worked on paper") == pytest.approx(0.25)
    assert [(e.kind, e.reason) for e in clock.list_events(session, participant)] == [
        ("start", ""),
        ("stop", ""),
        ("correct", "forgot to stop"),
        ("correct", "worked on paper"),
    ]
    assert hours(session, participant, "learn/pruning") == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("row", "by", "reason", "said"),
    [
        ("learn/pruning", 1, " ", "needs a reason"),
        ("learn/pruning", 0, "x", "other than 0"),
        ("learn/pruning", float("nan"), "x", "other than 0"),
        ("learn/pruning", 101, "x", "at most 100"),
        ("learn/pruning", -0.5, "x", "learn/pruning has 0.00 hours"),
        ("learn/magic", 1, "x", "no row 'learn/magic'"),
    ],
)
def test_a_wrong_correction_is_one_sentence_and_keeps_nothing(session, participant, row, by, reason, said):
    with pytest.raises(UserError, match=said):
        clock.add_correction(session, participant, row, by, reason)
    assert clock.list_events(session, participant) == []


def test_a_computer_clock_set_back_makes_no_negative_time(session, participant):
    at = utc_now()
    clock.start(session, participant, "combine", at)
    clock.stop(session, participant, at - timedelta(hours=1))
    assert hours(session, participant, "combine") == 0


def test_a_row_of_a_stage_that_is_not_open_says_which_comes_first(session):
    learner = join(session, "p08", until="learning")
    clock.start(session, learner, "learn/models")
    with pytest.raises(UserError, match=r"Practice is not open yet; first comes Learning \(learning\)"):
        clock.start(session, learner, "tune/pruning")
    with pytest.raises(UserError, match="no row 'pruning'"):
        clock.start(session, learner, "pruning")


def test_stopping_what_does_not_run_says_how_to_start(session, participant):
    for change in (clock.stop, clock.pause, clock.resume):
        with pytest.raises(UserError, match="No clock is running"):
            change(session, participant)


def test_a_clock_without_a_sign_of_life_is_noticed(session, participant):
    clock.start(session, participant, "combine", utc_now() - timedelta(hours=3))
    assert clock.hours_if_idle(session, participant) == pytest.approx(3, abs=0.01)
    clock.pause(session, participant)
    assert clock.hours_if_idle(session, participant) is None
