"""Workers of a study that are killed at any moment, or begin at the same one; and a cache of which bits fell out."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time

import pytest

from compression import methods, models
from compression.tuning import worker
from compression.tuning.cache import StepCache, weights_digest
from compression.tuning.config import TuningConfig
from compression.tuning.space import build_space

pytestmark = pytest.mark.faults

DEFINITION = {"recipe": "magnitude+static", "seed": 0}


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Makes an empty folder, whose file is Optuna's storage from then on; the file."""
    worker.silence_optuna()
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.1)

    def make(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{folder}/optuna.db")
        return folder / "optuna.db"

    return make


def open_study():
    """Whether the study can be opened, and is what its definition says."""
    try:
        study = worker.open_study(
            TuningConfig(), "s", build_space("magnitude+static", {}), {"accuracy": True}, DEFINITION
        )
    except Exception as error:  # noqa: BLE001 - counted
        print(type(error).__name__, error)
        return False
    return study.user_attrs["about"] == DEFINITION and study.metric_names == ["accuracy"]


def opener(begin):
    """Start a process that opens the study as soon as the pipe `begin` is closed at its other end; its id."""
    if pid := os.fork():
        return pid
    os.close(begin[1])
    os.read(begin[0], 1)
    os._exit(0 if open_study() else 1)


def openers(count):
    """Start so many at one moment; their ids."""
    begin = os.pipe()
    pids = [opener(begin) for _ in range(count)]
    for end in begin:
        os.close(end)
    return pids


def test_first_workers_at_once(database, tally):
    stuck, rounds = 0, 2
    for number in range(rounds):
        database(number)
        stuck += sum(os.waitpid(pid, 0)[1] != 0 for pid in openers(8))
        stuck += not open_study()
    tally("first workers of a study at once", tried=9 * rounds, stuck=stuck)


def test_first_workers_killed_at_any_moment_leave_a_study_that_goes_on(database, tally):
    generator, stuck, kills, undefined = random.Random(0), 0, 20, 0
    database("whole")
    began = time.monotonic()
    os.waitpid(openers(1)[0], 0)
    seconds = time.monotonic() - began
    for number in range(kills):
        file = database(number)
        [pid] = openers(1)
        time.sleep(generator.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        undefined += is_undefined(file)
        stuck += not open_study()
    print(f"{undefined} of {kills} studies had been created and not defined.")
    tally("first workers of a study killed", tried=kills, stuck=stuck)


def is_undefined(database):
    """Whether the database holds a study without its definition."""
    if not database.exists():
        return False
    with sqlite3.connect(database) as connection:
        try:
            [[studies]] = connection.execute("SELECT count(*) FROM studies")
            [[defined]] = connection.execute("SELECT count(*) FROM study_user_attributes WHERE key = 'about'")
        except sqlite3.OperationalError:  # no such table yet
            return False
    return studies > defined


def test_cached_models_of_which_bits_fell_out(tmp_path, tally):
    arguments = {"outputs": 10, "input_shape": [1, 8, 8], "width": 1.0}
    model = models.rebuild({"builder": "digits_cnn_small", "arguments": arguments}).eval()
    cache, steps, generator, lost = (
        StepCache(tmp_path / "steps", "start"),
        methods.parse("magnitude"),
        random.Random(0),
        0,
    )
    entry = cache._entry_folder(steps)
    for number in range(100):
        cache.save(steps, model, 1.0)
        file = generator.choice(sorted(entry.iterdir()))
        content = bytearray(file.read_bytes())
        if number % 4 == 0:
            content = content[: generator.randrange(len(content))]
        else:
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        lost += cache.find(steps) is not None
        cache.save(steps, model, 1.0)
        found = cache.find(steps)
        lost += found is None or weights_digest(found[0]) != weights_digest(model)
    tally("cached models with flipped bits", tried=100, lost=lost)
