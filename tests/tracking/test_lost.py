"""Whenever a process is killed, and whatever answer is lost: the next command leaves nothing RUNNING for ever."""

import os
import signal
import sqlite3
import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from compression import tracking
from compression.backend import doctor
from compression.cli import main
from compression.errors import UserError
from compression.tracking import lifecycle
from compression.tracking import store as sqlite_store
from compression.tracking.launches import launch_lock
from compression.tracking.lookup import RUN_KEY_TAG
from compression.tracking.lost import HOME_TAG
from tests.tracking.test_store import end, forked

NOTE = "mlflow.note.content"


@pytest.fixture
def client(store):
    sqlite_store.make_whole(store / "mlflow.db")
    return MlflowClient()


def running(client):
    return [run.info.run_id for run in client.search_runs(["0"], "attributes.status = 'RUNNING'")]


def next_command():
    """What every command does beside its own work."""
    with tracking.start_run("next"):
        pass


def killed(work):
    """Run `work` in a copy of this process, which has to end by SIGKILL."""
    assert os.WTERMSIG(os.waitpid(forked(work), 0)[1]) == signal.SIGKILL


def kill_self(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def after(function):
    """Run the real function, then die."""

    def replacement(*args, **kwargs):
        function(*args, **kwargs)
        kill_self()

    return replacement


@pytest.mark.parametrize(
    "place",
    [
        "compression.tracking.journal.Journal.__init__",
        "mlflow.MlflowClient.create_run",
        "compression.tracking.delivery.MlflowSender.save_metadata",
        "compression.tracking.journal.Journal.move",
        "compression.tracking.journal.Journal.reserve_space",
        "compression.tracking.run.Run.__init__",
        "mlflow.MlflowClient.log_batch",
        "compression.tracking.run.Run.end",
        "mlflow.MlflowClient.set_terminated",
    ],
)
@pytest.mark.parametrize("moment", [after, lambda function: kill_self], ids=["after", "before"])
def test_a_run_killed_at_any_point_of_its_life_is_ended_by_the_next_command(client, place, moment, monkeypatch):
    def work():
        monkeypatch.setattr(place, moment(eval_name(place)))
        with tracking.start_run("killed") as run:
            run.metrics({"m": 1.0})

    killed(work)
    next_command()
    assert running(client) == []
    assert tracking.undelivered_runs() == {}
    assert doctor.check_runs()


@pytest.mark.parametrize("place", ["mlflow.MlflowClient.create_run", "compression.tracking.run.Run.end"])
def test_a_child_killed_at_its_start_or_end_is_ended_by_the_next_command(client, place, monkeypatch):
    def work():
        with tracking.start_run("parent") as run:
            monkeypatch.setattr(place, after(eval_name(place)))
            with run.child("child", {}) as child:
                child.metrics({"m": 1.0})

    killed(work)
    assert running(client)
    with pytest.raises(UserError, match="were killed before they could say so") as named:
        doctor.check_runs()
    assert any(run_id in str(named.value) for run_id in running(client))
    next_command()
    assert running(client) == []


def eval_name(place):
    owner, _, name = place.rpartition(".")
    module, _, cls = owner.rpartition(".")
    return getattr(getattr(__import__(module, fromlist=[cls]), cls), name)


def losing_answers(monkeypatch, count):
    """Make the answers to the first `count` requests to create a run get lost; returns the ids of all that are made."""
    create, made = MlflowClient.create_run, []

    def lossy(self, *args, **kwargs):
        run = create(self, *args, **kwargs)
        made.append(run.info.run_id)
        if len(made) <= count:
            raise MlflowException("connection aborted", error_code=1)
        return run

    monkeypatch.setattr(MlflowClient, "create_run", lossy)
    return made


def test_a_run_whose_creation_was_answered_into_the_void_is_made_once(client, monkeypatch):
    made = losing_answers(monkeypatch, 1)
    with tracking.start_run("one") as run, run.child("below", {}) as child:
        child.metrics({"m": 1.0})
    assert [run.id, child.id] == made
    assert {client.get_run(run_id).info.status for run_id in made} == {"FINISHED"}


def test_a_twin_that_comes_late_is_ended_by_the_next_command(client):
    """The first request took longer than its timeout; the second had made the run when the first was done."""
    with tracking.start_run("one") as run:
        tags = client.get_run(run.id).data.tags
        late = client.create_run("0", tags=tags, run_name="one").info.run_id
        tracking.sync()
        assert running(client) == [run.id]
        run.metrics({"m": 1.0})
    twin = client.create_run("0", tags=tags, run_name="one").info.run_id
    with pytest.raises(UserError, match=f"1 runs were killed .*: {twin}; `compression sync`"):
        doctor.check_runs()
    next_command()
    assert running(client) == []
    assert {client.get_run(run_id).info.status for run_id in (late, twin)} == {"KILLED"}
    assert client.get_run(late).data.tags[NOTE].startswith("Nobody works on this run")
    assert client.get_run(run.id).info.status == "FINISHED"


def test_runs_tracked_from_elsewhere_are_left_alone(client, tmp_path):
    others = [
        client.create_run("0", tags=tags).info.run_id
        for tags in ({}, {HOME_TAG: "elsewhere"}, {RUN_KEY_TAG: "a" * 32}, tracking.home_tag(tmp_path))
    ]
    tracking.sync()
    assert sorted(running(client)) == sorted(others)
    for run_id in others:
        client.set_terminated(run_id)


def test_a_run_that_a_backend_is_starting_is_left_alone_until_both_are_killed(client):
    made = client.create_run("0", tags=tracking.home_tag()).info.run_id

    def start():
        with launch_lock(made, tracking.home()) as lock:
            forked(lambda: (os.fstat(lock), time.sleep(60)))  # imports, and has the lock from its parent
            time.sleep(60)

    path = tracking.home() / "launches" / made
    backend = forked(start)
    while not path.exists() or len(children := children_of(backend)) < 1:
        time.sleep(0.01)
    next_command()
    assert running(client) == [made]
    end(backend)
    next_command()
    assert running(client) == [made]
    os.kill(children[0], signal.SIGKILL)
    while os.path.exists(f"/proc/{children[0]}/fd") and os.listdir(f"/proc/{children[0]}/fd"):
        time.sleep(0.01)
    next_command()
    assert running(client) == []
    assert not path.exists()


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_doubled_signal_does_not_keep_a_run_from_ending(client, number):
    def work():
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(
                each, lambda number, _: os._exit(7) if ending.is_set() else (_ for _ in ()).throw(SystemExit(143))
            )
        ending = threading.Event()
        with tracking.start_run("signalled") as run:
            run.metrics({"m": 1.0})
            write = type(run).end

            def slow(*args):
                ending.set()
                for _ in range(3):
                    os.kill(os.getpid(), number)
                    time.sleep(0.05)
                write(*args)
                ending.clear()

            type(run).end = slow
            os.kill(os.getpid(), number)
            time.sleep(10)

    os.waitpid(forked(work), 0)
    [run] = client.search_runs(["0"], "attributes.run_name = 'signalled'", max_results=1)
    assert run.info.status == "KILLED"
    assert run.data.tags[NOTE] in ("Stopped by Ctrl-C.", "Stopped by a signal.")
    assert tracking.undelivered_runs() == {}


@pytest.mark.parametrize(("ignored", "code"), [(False, 129), (True, 0)])
def test_a_closed_terminal_ends_a_command_as_a_signal_does_except_under_nohup(store, monkeypatch, ignored, code):
    def work():
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        monkeypatch.setattr(tracking, "sync", lambda: os.kill(os.getpid(), signal.SIGHUP) or 0)
        try:
            main(["sync"])
        except SystemExit as stop:
            os._exit(stop.code)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == code


def test_what_trains_does_not_wait_for_a_store_that_hangs(client, store, monkeypatch):
    """The store is locked by a transaction that does not end before the child runs have."""
    monkeypatch.setattr(lifecycle, "CHILD_TIMEOUT", 0.3)
    still_locked = threading.Event()
    still_locked.set()
    with tracking.start_run("trains") as run:
        run.metrics({"m": 0.0})
        while not client.get_metric_history(run.id, "m"):
            time.sleep(0.05)
        database = sqlite3.connect(store / "mlflow.db", isolation_level=None, check_same_thread=False)
        database.execute("BEGIN EXCLUSIVE")

        def release():
            still_locked.clear()
            database.execute("COMMIT")

        watchdog = threading.Timer(15.0, release)
        watchdog.start()
        for number in range(4):
            with run.child(f"step {number}", {}) as child:
                child.metrics({"m": float(number)})
                child.table("rows", [{"a": number}])
        assert still_locked.is_set(), "the child runs waited until the store answered again"
        watchdog.cancel()
        release()
    found = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run.id}'", order_by=["attributes.run_name"])
    assert [each.info.run_name for each in found] == [f"step {number}" for number in range(4)]
    assert {each.info.status for each in found} == {"FINISHED"}
    assert [each.data.metrics["m"] for each in found] == [0.0, 1.0, 2.0, 3.0]
    assert [[file.path for file in client.list_artifacts(each.info.run_id)] for each in found] == [["rows.csv"]] * 4
    assert tracking.undelivered_runs() == {}


def test_a_run_that_the_server_refuses_leaves_no_folder(client, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("no more runs", error_code=9)

    monkeypatch.setattr(MlflowClient, "create_run", refuse)
    before = set(tracking.home().glob("runs/*"))
    with pytest.raises(UserError, match="Cannot start a run at .*: no more runs"):
        tracking.start_run("never").__enter__()
    assert set(tracking.home().glob("runs/*")) == before
