"""Runs that are killed at random moments: nothing is lost or doubled, and the next command leaves none RUNNING."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from compression import tracking
from compression.tracking import store as sqlite_store
from tests.backend.test_backend import PROJECT
from tests.tracking.test_store import forked

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
STEPS = 12
SIZE = 200_000


@pytest.fixture
def client(store):
    sqlite_store.make_whole(store / "mlflow.db")
    return MlflowClient()


def work(name, folder):
    """A run that only tracks: metrics, artifacts, child runs. Each step is said before the next begins."""
    with tracking.start_run(name) as run, (folder / name).open("a", encoding="utf-8") as said:
        run.params({f"p{number}": number for number in range(40)})
        for step in range(STEPS):
            run.metrics({"m": float(step)}, step)
            print(step, file=said, flush=True)
            path = run.artifact_folder / f"a{step}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([step]) * SIZE)
            run.artifact(path)
            if step % 4 == 3:
                with run.child(f"{name}.{step}", {}) as child:
                    child.metrics({"m": 1.0})
                    child.artifact(path)
            time.sleep(0.02)


def running(client):
    return client.search_runs(["0"], "attributes.status = 'RUNNING'")


def count_wrong(client, name, folder):
    """How many of a run's steps were lost, came twice, or left half a file."""
    lines = (folder / name).read_text(encoding="utf-8").split() if (folder / name).exists() else []
    said = set(map(int, lines))
    found = client.search_runs(["0"], f"attributes.run_name = '{name}'")
    wrong = max(0, len(found) - 1) + (len(said) if not found else 0)
    for run in found:
        steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, "m"))
        wrong += len(said - steps.keys()) + sum(steps.values()) - len(steps)
        for file in client.list_artifacts(run.info.run_id):
            wrong += file.file_size != SIZE
    return wrong


def test_killed_runs(client, tally, tmp_path):
    tried = 40
    said = tmp_path / "said"
    said.mkdir()
    begin = time.monotonic()
    assert os.waitpid(forked(lambda: work("whole", said)), 0)[1] == 0
    usual, chance, stuck = time.monotonic() - begin, random.Random(3), 0
    for number in range(tried):
        pid = forked(lambda number=number: work(f"r{number}", said))
        time.sleep(chance.uniform(0.0, usual))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if number % 10 == 9:
            tracking.sync()
            stuck += len(running(client))
    lost = sum(count_wrong(client, name, said) for name in ["whole", *(f"r{n}" for n in range(tried))])
    tally("runs killed", tried=tried, lost=lost, stuck=stuck + len(tracking.undelivered_runs()))


def test_runs_stopped_by_two_signals(client, tally, tmp_path):
    """No next command comes: each run ends by itself."""
    tried = 12
    said, chance, stuck = tmp_path / "said", random.Random(5), 0
    said.mkdir()

    def signalled(name):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        work(name, said)

    for number in range(tried):
        pid = forked(lambda number=number: signalled(f"s{number}"))
        while not (said / f"s{number}").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3))
        os.kill(pid, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3])
        time.sleep(chance.uniform(0.0, 0.3))
        try:
            os.kill(pid, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[number % 3])
        finally:
            os.waitpid(pid, 0)
        stuck += len(running(client))
        tracking.sync()
    tally("runs stopped by two signals", tried=tried, stuck=stuck)


def test_projects_killed_while_they_import(client, store, tally):
    """`mlflow run -b host` and its entry point, killed together before the entry point has joined the run."""
    tried = 4
    project = store / "project"
    project.mkdir()
    (project / "script.py").write_text("import pathlib, time; pathlib.Path('here').touch(); time.sleep(600)")
    (project / "MLproject").write_text(yaml.safe_dump(PROJECT))
    stuck, chance = 0, random.Random(6)
    command = [sys.executable, "-m", "mlflow", "run", "project", "-b", "host", "-P", "task=digits"]
    for number in range(tried):
        (project / "here").unlink(missing_ok=True)
        before = {run.info.run_id for run in running(client)}
        process = subprocess.Popen(command, cwd=store, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if number % 2:
            while not (project / "here").exists():
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.2))
        else:
            while not {run.info.run_id for run in running(client)} - before:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.2, 1.0))  # the run exists, its entry point begins
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in tree:
            each.kill()
        psutil.wait_procs(tree)
        process.wait()
        tracking.sync()
        stuck += len(running(client))
    tally("projects killed as they begin", tried=tried, stuck=stuck)
