"""The image, and `mlflow run` in it, on stores of this machine."""

import os
import signal
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from compression.backend import engine
from tests.containers.conftest import ROOT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

QUICK = ["-e", "distill", "-P", "task=digits", "-P", "limit=100", "-P", "epochs=2", "-P", "threads=1"]


def in_image(*words, options=()):
    words = ["docker", "run", "--rm", *options, engine.IMAGE, *words]
    return subprocess.run(words, capture_output=True, text=True)


def mlflow_run(*words, environment=None):
    words = [sys.executable, "-m", "mlflow", "run", ".", *words]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | (environment or {}))


def runs(folder):
    store = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return store.search_runs([e.experiment_id for e in store.search_experiments()])


def test_the_image_runs_as_nobody_special_and_holds_no_secrets_or_results(image):
    assert in_image("id", "--user").stdout == "1000\n"
    assert in_image("id", "--user", options=["--user", "1234"]).stdout == "1234\n"
    hidden = in_image("bash", "-c", "ls -A; ls -A docker").stdout.split()
    assert not {".git", ".venv", ".env", "mlruns", "mlflow.db", "tests"} & set(hidden)
    assert "compression" in hidden
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(image["Config"]["Env"])


def test_the_image_of_processors_is_under_2_gb(image):
    if "cuda" in in_image("python", "-c", "import torch; print(torch.version.cuda and 'cuda')").stdout:
        pytest.skip("this image has CUDA")
    assert image["Size"] < 2e9


def test_its_command_line_answers(image):
    assert "quantize" in in_image("compression", "--help").stdout
    assert "No run can begin" not in in_image("compression", "doctor").stdout


@pytest.mark.parametrize("backend", [["-b", "docker"], ["-A", "init"]], ids=["docker backend", "plain mlflow run"])
def test_an_entry_point_leaves_its_run_and_its_childs_in_the_default_store(image, project, backend):
    done = mlflow_run(*QUICK, *backend)
    assert done.returncode == 0, done.stderr[-3000:]
    found = runs(project)
    assert sorted(run.data.tags["stage"] for run in found) == ["compress", "train"]
    for run in found:
        assert run.info.status == "FINISHED"
        files = {f.path for f in MlflowClient(f"sqlite:///{project}/mlflow.db").list_artifacts(run.info.run_id)}
        assert {"model", "model.onnx", "report.html"} <= files
    owner = project.stat().st_uid
    made = [path for path in project.rglob("*") if not path.is_symlink()]
    assert {path.stat().st_uid for path in made} == {owner}


def test_data_and_recipes_of_this_machine_are_found_in_the_container(image, project):
    (project / "mine.yaml").write_text("- magnitude: {sparsity: 0.5}\n")
    words = ["-e", "compress", "-P", "task=digits", "-P", "limit=100", "-P", "recipe=@mine.yaml", "-P", "threads=1"]
    done = mlflow_run(*words, "-b", "docker")
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = [run for run in runs(project) if run.data.tags["stage"] == "compress"]
    assert run.data.params["sparsity"] == "0.5"


def test_a_signal_ends_the_container_and_the_run_is_killed(image, project):
    words = [sys.executable, "-m", "mlflow", "run", ".", "-b", "docker", "-e", "train", "-P", "task=digits"]
    process = subprocess.Popen([*words, "-P", "epochs=100000", "-P", "threads=1"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "epoch" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    [run] = runs(project)
    assert run.info.status == "KILLED"
    assert not engine.connect().client.containers.list(filters={"name": f"mlflow-{run.info.run_id}"})


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        ([], {"DOCKER_HOST": "tcp://127.0.0.1:9"}, "No Docker engine answers"),
        (["-A", "gpus=all"], {}, "no NVIDIA runtime"),
    ],
    ids=["no engine", "no gpu"],
)
def test_what_is_missing_is_said_before_there_is_a_run(image, project, words, environment, sentence):
    if "gpus=all" in words and "nvidia" in engine.connect().client.info()["Runtimes"]:
        pytest.skip("there is a GPU runtime")
    done = mlflow_run(*QUICK, "-b", "docker", *words, environment=environment)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert runs(project) == []


def test_a_missing_image_is_said_before_there_is_a_run(image, project):
    text = (ROOT / "MLproject").read_text().replace("image: model-compression-lab", "image: no-such-image")
    (project / "MLproject").unlink()
    (project / "MLproject").write_text(text)
    done = mlflow_run(*QUICK, "-b", "docker")
    assert done.returncode == 1
    assert "There is no image 'no-such-image' on this machine; build it with `make image`" in done.stderr
    assert runs(project) == []
