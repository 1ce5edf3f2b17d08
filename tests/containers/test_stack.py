"""The stack, broken in the middle of work: PostgreSQL, the server and a worker killed, and nothing lost."""

import json
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
import requests
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from compression.cli import cli
from compression.tracking.delivery import RUN_KEY_TAG

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

TRIALS = 10
# Epochs enough that the trials outlast what is killed in the middle of them, on a fast machine too.
TUNE = (
    "magnitude+finetune:learning_rate=0.1,epochs=450+static:calibration_samples=32 --task digits --model mlp "
    "--limit 150 --threads 1 "
    f"--trials {TRIALS} --study broken --heartbeat 2 --sampler random "
    "--space magnitude.sparsity=0.1..0.9,static.bits=4/8"
)


def started(*words, environment):
    """`mlflow run -b docker` in the background."""
    command = [sys.executable, "-m", "mlflow", "run", ".", "-b", "docker", *words]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def all_runs(client):
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def trials(stack):
    """The study's trials, asked for in a container: the database has no port outside."""
    code = (
        "import json, os, optuna\n"
        "study = optuna.load_study(study_name='broken', storage=os.environ['OPTUNA_STORAGE'])\n"
        "print(json.dumps([[t.number, t.state.name, t.user_attrs.get('run')] for t in study.get_trials()]))"
    )
    done = stack("exec", "-T", "dashboard", "python", "-c", code, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []


def are_all_ended(stack):
    """Whether the workers have made all the trials that they were asked for."""
    return sum(state == "COMPLETE" for _, state, _ in trials(stack)) >= TRIALS


def until(come, seconds=300):
    stop = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < stop, "it did not come in time"
        time.sleep(0.5)


def test_the_ports_are_this_machines_alone_and_everything_answers(stack):
    for container in stack("ps", "--quiet").stdout.split():
        shown = subprocess.run(["docker", "port", container], capture_output=True, text=True).stdout.split("\n")
        assert all("-> 127.0.0.1:" in line for line in shown if line)
    ports = stack.ports
    assert requests.get(f"http://127.0.0.1:{ports['STUDY_PORT']}/health", timeout=10).text == "OK"
    assert requests.get(f"http://127.0.0.1:{ports['DASHBOARD_PORT']}/api/studies", timeout=10).ok
    assert requests.get(stack.uri, timeout=10).status_code == 401
    login = ("admin", stack.passwords["MLFLOW_ADMIN_PASSWORD"])
    strange = requests.get(f"{stack.uri}/", headers={"Host": "evil.example"}, auth=login, timeout=10)
    assert strange.status_code == 403


@pytest.mark.parametrize("service", ["postgres", "server", "dashboard", "study"])
def test_a_service_has_no_capabilities_and_writes_to_volumes_and_memory_alone(stack, service):
    [container] = stack.containers(service)
    found = json.loads(subprocess.run(["docker", "inspect", container], capture_output=True, text=True).stdout)[0]
    host = found["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0
    # Of the process itself, which is not root's: what it may do, and whether a file beside the code can be made.
    status = stack("exec", "-T", service, "cat", "/proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in status or service == "postgres"
    assert "NoNewPrivs:\t1" in status
    written = stack("exec", "-T", service, "touch", "/usr/local/bin/mine", check=False)
    assert written.returncode != 0
    assert "Read-only file system" in written.stderr


def test_the_studys_web_app_has_neither_the_administrators_password_nor_rights(stack):
    given = stack("exec", "-T", "study", "env").stdout
    assert stack.passwords["MLFLOW_ADMIN_PASSWORD"] not in given
    login = ("study", stack.passwords["MLFLOW_STUDY_PASSWORD"])
    users = f"{stack.uri}/api/2.0/mlflow/users"
    assert requests.get(f"{users}/current", auth=login, timeout=10).json()["user"]["is_admin"] is False
    mine = {"username": "mine", "password": "a password of mine"}
    assert requests.post(f"{users}/create", json=mine, auth=login, timeout=10).status_code == 403


def test_it_refuses_to_start_with_the_passwords_of_the_example(stack, tmp_path):
    example = {"COMPOSE_ENV_FILES": "docker/.env.example"}
    refused = stack("config", "--quiet", check=False, more=example)
    assert refused.returncode != 0
    assert "make secrets" in refused.stderr


def test_no_password_is_in_an_argument_list_or_a_log(stack):
    for container in stack("ps", "--quiet").stdout.split():
        listed = subprocess.run(["docker", "top", container, "-eo", "args"], capture_output=True, text=True).stdout
        log = subprocess.run(["docker", "logs", container], capture_output=True, text=True)
        for password in (value for value in stack.passwords.values() if len(value) > 20):
            assert password not in listed + log.stdout + log.stderr


def test_health_notices_a_database_that_is_gone(stack):
    [server] = stack.containers("server")
    stack("stop", "postgres")

    def health():
        shown = ["docker", "inspect", "--format", "{{.State.Health.Status}}", server]
        return subprocess.run(shown, capture_output=True, text=True).stdout.strip()

    until(lambda: health() == "unhealthy", 90)
    stack.up()
    until(lambda: health() == "healthy", 90)


def test_nothing_is_lost_when_database_server_and_a_worker_are_killed_in_the_middle(stack, client, project):
    run = started(
        *("-e", "train", "-P", "task=digits", "-P", "epochs=400", "-P", "limit=300", "-P", "threads=1"),
        environment=stack.login(),
    )
    more = {"TUNE": TUNE}
    stack("--profile", "worker", "up", "--detach", "--scale", "worker=2", "worker", more=more)
    until(lambda: {"COMPLETE", "RUNNING"} <= {state for _, state, _ in trials(stack)})

    for service in ("postgres", "server"):
        stack.kill(stack.containers(service)[0])
        time.sleep(5)
        stack.up()
    until(lambda: any(state == "RUNNING" for _, state, _ in trials(stack)) or are_all_ended(stack))
    assert not are_all_ended(stack), "the trials were too quick for this test"
    stack.kill(stack("--profile", "worker", "ps", "--quiet", "worker").stdout.split()[0])
    stack("--profile", "worker", "up", "--detach", "--scale", "worker=2", "worker", more=more)

    said, _ = run.communicate(timeout=900)
    assert run.returncode == 0, said.decode()[-3000:]
    until(lambda: not stack("--profile", "worker", "ps", "--quiet", "--status", "running", "worker").stdout, 900)

    # What ended while the server was away is in files: the run's in this folder, the workers' in their volume.
    assert "none left" in CliRunner().invoke(cli, ["sync"]).output
    assert "none left" in stack("--profile", "lab", "run", "--rm", "-T", "lab", "compression", "sync").stdout

    [trained] = [r for r in all_runs(client) if r.data.params.get("epochs") == "400"]
    assert trained.info.status == "FINISHED"
    losses = client.get_metric_history(trained.info.run_id, "train_loss")
    assert sorted(m.step for m in losses) == list(range(1, 401))
    assert {"model", "model.onnx", "report.html"} <= {f.path for f in client.list_artifacts(trained.info.run_id)}

    states = Counter(state for _, state, _ in trials(stack))
    assert states["COMPLETE"] >= TRIALS
    assert states["RUNNING"] == states["WAITING"] == 0
    of_trials = [r for r in all_runs(client) if r.data.tags.get("stage") == "trial"]
    # A trial that began while the server was away is known by the key that its machine gave it, as `get_run` knows it.
    by_trial = {r.data.tags[RUN_KEY_TAG]: r for r in of_trials} | {r.info.run_id: r for r in of_trials}
    for number, state, run_id in trials(stack):
        if state == "COMPLETE":
            assert by_trial[run_id].info.status == "FINISHED", number
            assert "accuracy" in by_trial[run_id].data.metrics
    assert "RUNNING" not in {r.info.status for r in all_runs(client)}


def test_nothing_is_lost_when_the_stack_goes_down_and_comes_up(stack, client):
    before = remembered(client), trials(stack)
    stack("down", "--timeout", "10")
    stack.up()
    assert (remembered(client), trials(stack)) == before


def test_a_backup_brings_back_what_was_deleted(stack, client, tmp_path):
    kept = remembered(client)
    stack.run("bash", "docker/backup.sh", str(tmp_path / "backup"))
    for run in all_runs(client):
        client.delete_run(run.info.run_id)
    subprocess.run(["docker", "exec", *stack.containers("server"), "bash", "-c", "rm -rf /artifacts/*"], check=True)
    assert remembered(client) != kept
    stack.run("bash", "docker/restore.sh", str(tmp_path / "backup"))
    assert remembered(client) == kept
    with_model = next(r for r in all_runs(client) if r.data.tags.get("stage") == "train")
    assert client.download_artifacts(with_model.info.run_id, "report.html", str(tmp_path))
    refused = stack.run("bash", "docker/backup.sh", str(tmp_path / "backup"), check=False)
    assert "exists already" in refused.stderr


def remembered(client):
    """Every run with its status, metrics and the names of its files."""
    return sorted(
        (r.info.run_id, r.info.status, sorted(r.data.metrics.items()), sorted(f.path for f in files(client, r)))
        for r in all_runs(client)
    )


def files(client, run):
    try:
        return client.list_artifacts(run.info.run_id)
    except MlflowException:
        return []


def test_the_shell_of_the_stack_runs_an_entry_point_against_it(stack, client):
    words = ["mlflow", "run", ".", "-b", "host", "-e", "evaluate", "-P", "task=digits", "-P", "limit=100"]
    models = [r.info.run_id for r in all_runs(client) if r.data.tags.get("stage") == "train"]
    words += ["-P", "model=digits_cnn", "-P", f"baseline=runs:/{models[0]}/model"]
    stack("--profile", "lab", "run", "--rm", "-T", "lab", *words)
    assert any(r.data.tags.get("stage") == "evaluate" for r in all_runs(client))
