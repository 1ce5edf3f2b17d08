"""Workers of one study, with trials that take no time."""

from itertools import cycle, islice

import pytest

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
