"""Whole runs on the digits, against a real SQLite store, and what they leave behind."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import torch

from compression import methods, tasks
from compression.deploy.measure import EFFICIENCY_METRICS
from compression.errors import UserError
from compression.models import storage
from compression.reporting import comparison
from compression.runs import baseline, chain, job
from compression.runs.settings import Settings


def quick(**changes):
    return Settings(**{"task": "digits", "limit": 300, "threads": 1} | changes)


@pytest.fixture(scope="module")
def distilled(store):
    [step] = methods.parse("response:epochs=2,temperature=3.0")
    content = chain.compress(quick(participant="p07"), [step])
    return content, mlflow.get_run(content["run"])


def files(run, path=""):
    return {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, path)}


def fetched(run, path):
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{path}"))


def test_a_run_finishes_with_every_metric_of_the_design(distilled):
    _, run = distilled
    assert run.info.status == "FINISHED"
    names = set(run.data.metrics)
    assert {*EFFICIENCY_METRICS, *(f"{n}_before" for n in EFFICIENCY_METRICS)} <= names
    assert {"accuracy", "accuracy_before", "accuracy_kept", "compression_ratio", "speedup", "macs_ratio"} <= names
    assert {"seconds", "train_loss", "val_accuracy", "learning_rate"} <= names


def test_every_field_is_a_parameter(distilled):
    _, run = distilled
    [step] = methods.parse("response:epochs=2")
    from compression import params

    for name in params.fields(type(step)):
        assert name in run.data.params
    assert run.data.params["temperature"] == "3.0"
    assert run.data.params["learning_rate"] != "None"  # the task's own, as it was used
    for name in ("task", "model", "seed", "device", "threads", "version.torch", "cpu_capability"):
        assert run.data.params[name]


def test_the_tags_say_who_what_and_that_it_was_a_quick_look(distilled):
    _, run = distilled
    tags = run.data.tags
    assert tags["participant"] == "p07"
    assert float(tags["participant.time_hours"]) > 0
    assert (tags["method"], tags["family"], tags["task"], tags["stage"]) == (
        "response",
        "distill",
        "digits",
        "compress",
    )
    assert tags["limited"] == "300"
    assert "not the figures of digits" in tags["mlflow.note.content"]
    assert "| accuracy |" in tags["mlflow.note.content"]


def test_the_artifacts_are_there_and_the_model_answers_as_reported(distilled, tmp_path):
    content, run = distilled
    assert {"model", "model.onnx", "comparison.json", "layers.csv", "report.html", "figures"} <= files(run)
    assert "figures/quality-against-size.png" in files(run, "figures")
    again = chain.evaluate(quick(baseline=f"runs:/{run.info.run_id}/model"))
    assert again["metrics"]["accuracy"] == pytest.approx(content["metrics"]["accuracy"])
    assert again["metrics"]["params"] == content["metrics"]["params"]
    assert again["model"] == "digits_cnn"  # as the run that made it was told


def test_the_report_is_one_file_that_asks_for_nothing_else(distilled, tmp_path):
    _, run = distilled
    page = fetched(run, "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for part in ("Before and after", "Layer by layer", "Repeat it", "these are not the figures"):
        assert part in page
    assert page.count("data:image/png") >= 5


def test_the_baseline_was_trained_as_a_child_and_is_not_trained_again(distilled):
    content, run = distilled
    [trained] = [r for r in children(run) if r.data.tags["stage"] == "train"]
    assert trained.info.status == "FINISHED"
    assert run.data.tags["baseline"] == f"runs:/{trained.info.run_id}/model"
    [step] = methods.parse("response:epochs=1")
    again = chain.compress(quick(seed=1), [step])
    second = mlflow.get_run(again["run"])
    assert not children(second)
    assert second.data.tags["baseline"] == run.data.tags["baseline"]


def children(run):
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{run.info.run_id}'",
        output_format="list",
    )


def test_the_layer_table_sets_before_beside_after(distilled):
    _, run = distilled
    rows = list(csv.DictReader(fetched(run, "layers.csv").read_text().splitlines()))
    assert {"layer", "shape", "shape_before", "sparsity", "bits", "macs", "params_before"} <= set(rows[0])


def test_a_stored_run_is_reported_again_and_two_side_by_side(distilled, tmp_path, monkeypatch):
    content, run = distilled
    other = chain.evaluate(quick(baseline=f"runs:/{run.info.run_id}/model"))
    alone = comparison.write_page([content["run"]], str(tmp_path / "one.html")).read_text()
    assert content["command"].split("--baseline")[0] in alone
    with mlflow.start_run() as made:  # as mlflow run -e report does it
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    comparison.log_page(tmp_path / "one.html", [content["run"]])
    assert "one.html" in files(mlflow.get_run(made.info.run_id))
    both = comparison.write_page([content["run"], other["run"]], str(tmp_path / "two.html")).read_text()
    assert "2 runs on digits" in both


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("response:student=nothing+finetune", "no model 'nothing'"),
        ("feature:pairs=stages.0:stages.9", "The student has no layer 'stages.9'"),
        ("response:teacher=mlp,layers=2", "a MLP is neither"),
    ],
)
def test_what_cannot_work_is_refused_before_a_baseline_is_trained(store, recipe, said):
    with pytest.raises(UserError, match=re.escape(said)):
        chain.compress(quick(model="cnn5", run_name="validated"), methods.parse(recipe))
    [run] = mlflow.search_runs(max_results=1, order_by=["attributes.start_time DESC"], output_format="list")
    assert run.info.run_name == "validated"
    assert not children(run)


def test_looking_ahead_does_not_change_how_the_baseline_begins(store):
    [step] = methods.parse("response:student=mlp")
    with job.started(quick(model="cnn5"), "compress", [step]) as under_way:
        before = torch.get_rng_state()
        baseline.validate_first_step(under_way, step)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_run_without_results_has_no_report(store, tmp_path):
    with pytest.raises(UserError, match="no model for images 'nowhere/at-all'"):
        chain.compress(quick(), methods.parse("response:epochs=1,teacher=nowhere/at-all"))
    [failed] = mlflow.search_runs(filter_string="attributes.status = 'FAILED'", output_format="list", max_results=1)
    with pytest.raises(UserError, match=r"\(FAILED\) has no report"):
        comparison.write_page([failed.info.run_id], str(tmp_path / "none.html"))


@pytest.mark.parametrize(
    ("settings", "recipe", "said"),
    [
        ({"task": "letters"}, "response", "no task 'letters'; the tasks are"),
        ({"model": "resnet-1000"}, "response", "no model 'resnet-1000'"),
        ({"baseline": "runs:/0123456789abcdef0123456789abcdef/model"}, "response", "0123456789abcdef"),
        ({"data": "/nowhere"}, "response", "data"),
        ({}, "response:student=nothing", "no model 'nothing'"),
    ],
)
def test_bad_input_fails_the_run_with_the_sentence_in_its_note(store, settings, recipe, said):
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        chain.compress(quick(**settings), methods.parse(recipe))
    [run] = mlflow.search_runs(max_results=1, order_by=["attributes.start_time DESC"], output_format="list")
    assert run.info.status == "FAILED"
    assert str(refused.value) in run.data.tags["mlflow.note.content"]
    assert not files(run)


def test_a_teacher_of_another_task_is_refused(store, tmp_path):
    from compression import models
    from tests.conftest import stripes_task

    other = models.build("digits_cnn", stripes_task())
    storage.save(other, tmp_path / "three", {})
    [step] = methods.parse(f"response:epochs=1,teacher={tmp_path}/three")
    with pytest.raises(UserError, match="gives 3 outputs and digits has 10"):
        chain.compress(quick(), [step])


def test_a_chain_prefixes_its_parameters(store):
    content = chain.compress(quick(), methods.parse("finetune:epochs=1+response:epochs=1"))
    run = mlflow.get_run(content["run"])
    assert run.data.params["response.temperature"] == "4.0"
    assert run.data.params["finetune.epochs"] == "1"
    assert json.loads(json.dumps(content))["steps"].startswith("finetune:epochs=1")


def test_resuming_what_is_not_here_is_refused(store):
    with pytest.raises(UserError, match="no checkpoint of the run abc"):
        chain.train(quick(resume="abc"), methods.method("finetune")(epochs=1))


def test_mlflow_loads_the_model_without_a_pickle(distilled):
    content, run = distilled
    served = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    task = tasks.load("digits", limit=300)
    answers = served.predict(task.example(50).numpy())
    assert answers.shape == (50, 10)


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(store, tmp_path):
    finetune = methods.method("finetune")(epochs=150, keep="last")
    whole = chain.train(quick(limit=100, model="mlp"), finetune)
    words = ["--task", "digits", "--limit", "100", "--threads", "1", "--model", "mlp", "--experiment", "killed"]
    entry = str(Path(__file__).parents[2] / "entrypoints" / "train.py")
    child = subprocess.Popen([sys.executable, entry, *words, "--epochs", "150", "--keep", "last"])
    while child.poll() is None and not (checkpoints := list(store.glob("home/runs/*/train.pt"))):
        time.sleep(0.02)
    child.kill()
    child.wait()
    [checkpoint] = checkpoints
    assert 0 < torch.load(checkpoint, weights_only=True)["epoch"] < 150
    resumed = chain.train(quick(limit=100, model="mlp", resume=checkpoint.parent.name), finetune)
    one, other = (storage.load(fetched(mlflow.get_run(c["run"]), "model")) for c in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert mlflow.get_run(resumed["run"]).data.tags["resumed_from"] == checkpoint.parent.name


def test_two_processes_train_into_one_run(store):
    # accelerate launch starts several processes as torchrun does; on the CPU only torchrun will
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    entry = str(Path(__file__).parents[2] / "entrypoints" / "train.py")
    words = ["--task", "digits", "--limit", "200", "--epochs", "2", "--device", "cpu", "--threads", "1"]
    options = [*words, "--model", "mlp", "--experiment", "two-processes", "--batch-size", "33"]
    done = subprocess.run([sys.executable, *launch, entry, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [run] = mlflow.search_runs(experiment_names=["two-processes"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["processes"] == "2"
    assert "each takes 16 examples at a step, 32 together" in run.data.tags["warning"]
    assert run.data.metrics["accuracy"] > 0.3


@pytest.mark.parametrize(("recipe", "told"), [("magnitude", []), ("magnitude:epochs=5", ["magnitude: epochs=5 has"])])
def test_of_fields_without_effect_those_that_were_given_are_told(recipe, told):
    from compression.runs import machine
    from compression.tracking.null_run import NullRun

    warnings = []
    with NullRun.start() as run:
        run.warn = warnings.append
        work = job.Job(quick(), tasks.load("digits", limit=60), machine.prepare(quick()), run, "compress")
        work.resolved(work.resolved(methods.parse(recipe)))
    assert [w[: len(t)] for w, t in zip(warnings, told * 2, strict=True)] == told * 2
