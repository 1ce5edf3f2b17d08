"""First runs that are interrupted, or begin at once: the next finds a store that it can open."""

import os
import random
import signal
import sqlite3
import sys
import time

import pytest

from compression import tracking
from compression.tracking import store
from tests.tracking.test_store import forked

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.fixture
def first_run(monkeypatch):
    """`first_run(folder)`: start a run on the store of a folder in a process of its own; returns the process id."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - once for all: a first run takes seconds to import it

    def start(folder):
        folder.mkdir(exist_ok=True)

        def work():
            os.setsid()
            os.dup2(os.open(folder / f"said-{os.getpid()}", os.O_WRONLY | os.O_CREAT), 2)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            monkeypatch.setenv("COMPRESSION_HOME", str(folder / "home"))
            monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
            tracking.check_server()
            with tracking.start_run("first") as run:
                run.metrics({"m": 1.0})

        return forked(work)

    return start


def statuses(folder):
    with sqlite3.connect(folder / "mlflow.db") as database:
        return sorted(status for (status,) in database.execute("SELECT status FROM runs"))


def test_interrupted_first_runs(first_run, tally, tmp_path):
    tried = 21
    begin = time.monotonic()
    assert os.waitpid(first_run(tmp_path / "whole"), 0)[1] == 0
    usual, chance, stuck = time.monotonic() - begin, random.Random(1), []
    for number in range(tried):
        folder = tmp_path / str(number)
        pid = first_run(folder)
        time.sleep(chance.uniform(0.02, usual))
        os.kill(pid, SIGNALS[number % 3])
        os.waitpid(pid, 0)
        code = os.waitpid(first_run(folder), 0)[1]
        if code or not store.sqlite_path(f"sqlite:///{folder}/mlflow.db").exists() or "RUNNING" in statuses(folder):
            stuck.append(number)
    tally("first runs interrupted", tried=tried, stuck=len(stuck))


def test_first_runs_at_once(first_run, tally, tmp_path):
    tried = 8
    pids = [first_run(tmp_path / "shared") for _ in range(tried)]
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
    assert statuses(tmp_path / "shared") == ["FINISHED"] * (tried - failed)
    tally("first runs at once", tried=tried, stuck=failed)
