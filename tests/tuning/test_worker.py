"""Workers of one study, with trials that take no time."""

import os
import random
import signal
import subprocess
import sys
from itertools import cycle, islice

import optuna
import pytest

from compression.errors import UserError
from compression.tuning import worker
from compression.tuning.config import TuningConfig
from compression.tuning.space import build_space
from compression.tuning.worker import open_study, silence_optuna

SPACE = "magnitude.sparsity=0.1/0.3/0.5/0.7,static.bits=2/4/8"


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """The same study as three workers open it, each with a seed of its own."""
    silence_optuna()
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path}/optuna.db")

    def worker(sampler, seed):
        definition = {"recipe": "magnitude+static", "seed": seed}
        return open_study(TuningConfig(sampler=sampler), sampler, searched, {"accuracy": True}, definition)

    recipe = "magnitude:learning_rate=0.1+static:activation_bits=8,granularity=channel,observer=mse"
    searched = build_space(recipe, TuningConfig(space=SPACE).space)
    return lambda sampler: ([worker(sampler, seed) for seed in range(3)], searched)


def tried(study, searched):
    """The point that the study's sampler chooses next."""
    chosen = []

    def objective(trial):
        chosen.extend(found.suggest(trial, name) for name, found in searched.ranges.items())
        return 0.0

    study.optimize(objective, n_trials=1)
    return tuple(chosen)


def test_workers_of_a_grid_try_every_point_once_together(workers):
    studies, searched = workers("grid")
    points = [tried(study, searched) for study in islice(cycle(studies), 12)]
    assert len(set(points)) == 12


def test_workers_draw_different_random_values(workers):
    studies, searched = workers("random")
    drawn = [tuple(tried(study, searched) for _ in range(6)) for study in studies]
    assert len(set(drawn)) == 3


DEFINITION = {"recipe": "magnitude+static", "seed": 0}
GOALS = {"accuracy": True}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open the study s with changes of its definition, without waiting for a worker that is slow to define it."""
    silence_optuna()
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path}/optuna.db")
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    space = build_space("magnitude+static", {})
    return lambda goals=GOALS, **changes: open_study(TuningConfig(), "s", space, goals, DEFINITION | changes)


CREATED = "import os, optuna; optuna.create_study(storage=os.environ['OPTUNA_STORAGE'], study_name='s', directions={})"


def test_a_study_whose_worker_was_killed_before_it_defined_it_is_taken_over(opened):
    killed = CREATED.format("['maximize']") + "; os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert opened().user_attrs["about"] == DEFINITION
    assert opened().metric_names == ["accuracy"]
    with pytest.raises(UserError, match="The study s was begun with recipe=magnitude"):
        opened(recipe="static")


def test_a_study_that_another_tool_began_is_not_taken_over(opened):
    study = optuna.create_study(storage=os.environ["OPTUNA_STORAGE"], study_name="s", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="The study s was not begun by tune"):
        opened()


@pytest.mark.parametrize("damage", ["text", "half", "header", "page", "folder"])
def test_a_damaged_storage_is_named(opened, tmp_path, damage):
    opened()
    file = tmp_path / "optuna.db"
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        noise = random.Random(0).randbytes(len(whole))
        spoilt = {"text": b"hello" * 1000, "half": whole[: len(whole) // 2], "header": whole[:100]}
        file.write_bytes(spoilt.get(damage, whole[:4096] + noise[4096:]))
    with pytest.raises(UserError, match="Optuna's storage sqlite:.*optuna.db cannot be used: .*; see OPTUNA_STORAGE"):
        opened()


@pytest.mark.parametrize(
    "url", ["nonsense://x", "", "sqlite", "sqlite:///{x}", "postgresql+psycopg2://a:b@127.0.0.1:1/x"]
)
def test_a_storage_that_is_none_is_named_without_its_password(opened, monkeypatch, url):
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    with pytest.raises(UserError, match=r"Optuna's storage .* cannot be used: .") as refused:
        opened()
    assert "a:b" not in str(refused.value)


def test_a_storage_that_goes_away_between_trials_is_named(opened, tmp_path):
    study = opened()
    (tmp_path / "optuna.db").write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match="went away; start this worker again"):
        worker.Worker(study, TuningConfig(), None).run()
