"""The project backend `host`, on tiny projects whose entry point is a small script."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import requests
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.cli import cli
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException
from mlflow.projects.utils import load_project

from compression import methods
from compression.backend import child_process
from compression.backend.docker import DockerBackend
from compression.backend.process_backend import Launch

ROOT = Path(__file__).parents[2]
PROJECT = {
    "name": "tiny",
    "docker_env": {"image": "no-such-image"},
    "entry_points": {
        "main": {
            "parameters": {"method": {"type": "string", "default": "response"}, "task": "string"},
            "command": "python script.py {method} --task {task}",
        }
    },
}
LOOK = """
import json, os, pathlib, sqlite3, sys
store, run = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"), os.environ["MLFLOW_RUN_ID"]
[name] = sqlite3.connect(store).execute("select name from runs where run_uuid = ?", [run]).fetchone()
seen = {"words": sys.argv[1:], "python": sys.executable, "folder": os.getcwd(), "store": store, "name": name}
pathlib.Path("seen.json").write_text(json.dumps(seen))
"""
SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
# Has a child, and a grandchild in a session of its own whose parent is gone; `pids` holds all three.
FAMILY = """
import os, pathlib, subprocess, sys, time
command = [sys.executable, "-c", {code!r}]
near = subprocess.Popen(command)
if not os.fork():
    far = subprocess.Popen(command, start_new_session=True)
    pathlib.Path("part").write_text(f"{{os.getppid()}} {{near.pid}} {{far.pid}}")
    os._exit(0)
os.wait()
time.sleep(0.5)  # until the deaf are deaf
os.rename("part", "pids")
"""
OWN_WORDS = """
import os, sys
from mlflow import MlflowClient
MlflowClient().set_tag(os.environ["MLFLOW_RUN_ID"], "mlflow.note.content", "mine")
MlflowClient().set_terminated(os.environ["MLFLOW_RUN_ID"], "KILLED")
sys.exit(143)
"""


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs, to copy: making one takes a second."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """The default store of `tmp_path`, from where mlflow is called."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    yield MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    for pids in tmp_path.glob("project/pids"):
        for pid in alive(pids):  # where a test has failed
            os.kill(pid, signal.SIGKILL)


def project(script: str, **main: str) -> Path:
    """The folder `project` in the current one, with `script` as its entry point."""
    folder = Path("project")
    folder.mkdir()
    (folder / "script.py").write_text(script)
    points = {"main": PROJECT["entry_points"]["main"] | main}
    (folder / "MLproject").write_text(yaml.safe_dump(PROJECT | {"entry_points": points}))
    return folder


def mlflow_run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["run", "project", "-b", "host", "-P", "task=digits", *words])


def only_run(client: MlflowClient) -> Run:
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def note(run: Run) -> str:
    return run.data.tags.get("mlflow.note.content", "")


def alive(pids: Path) -> list[int]:
    found = [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid)]
    return [pid for pid in found if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def test_a_run_that_succeeds_is_finished_and_exits_with_0(client):
    project("")
    assert mlflow_run("-P", "temperature=4").exit_code == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"method": "response", "task": "digits", "temperature": "4"}
    assert run.data.tags["mlflow.project.backend"] == "host"
    assert not note(run)


def test_the_entry_point_runs_in_this_python_in_the_project_with_the_callers_store_and_name(client, tmp_path):
    folder = project(LOOK)
    assert mlflow_run("--run-name", "bob", "-P", "temperature=4").exit_code == 0
    assert json.loads((folder / "seen.json").read_text()) == {
        "words": ["response", "--task", "digits", "--temperature", "4"],
        "python": sys.executable,
        "folder": str(tmp_path / "project"),
        "store": str(tmp_path / "mlflow.db"),
        "name": "bob",
    }
    assert not (folder / "mlflow.db").exists()
    assert only_run(client).info.run_name == "bob"


def test_a_store_named_relative_to_the_caller_is_the_childs_store_too(client, tmp_path, monkeypatch):
    folder = project(LOOK)
    os.rename("mlflow.db", "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert mlflow_run().exit_code == 0
    assert json.loads((folder / "seen.json").read_text())["store"] == str(tmp_path / "other.db")
    assert only_run(MlflowClient(f"sqlite:///{tmp_path}/other.db")).info.status == "FINISHED"


def test_a_run_that_fails_keeps_its_name_and_experiment_and_exits_with_1(client):
    project("raise SystemExit(3)")
    result = mlflow_run("--run-name", "bob", "--experiment-name", "trials")
    assert result.exit_code == 1
    run = only_run(client)
    assert (run.info.status, run.info.run_name) == ("FAILED", "bob")
    assert client.get_experiment(run.info.experiment_id).name == "trials"
    assert note(run) == "The command failed with exit code 3."
    assert note(run) in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("number", "status", "sentence"),
    [
        (9, "FAILED", "The command was ended by SIGKILL: perhaps the memory ran out."),
        (11, "FAILED", "The command was ended by SIGSEGV."),
        (15, "KILLED", "The command was stopped by SIGTERM."),
    ],
)
@pytest.mark.parametrize("before", ["", "true && "], ids=["alone", "below bash"])
def test_the_note_names_the_signal_that_ended_the_command(client, number, status, sentence, before):
    project(f"import os; os.kill(os.getpid(), {number})", command=f"{before}python script.py")
    assert mlflow_run().exit_code == 1
    assert (only_run(client).info.status, note(only_run(client))) == (status, sentence)


def test_the_status_and_note_that_the_entry_point_gave_stay(client):
    project(OWN_WORDS)
    assert mlflow_run().exit_code == 1
    assert (only_run(client).info.status, note(only_run(client))) == ("KILLED", "mine")


def test_what_the_entry_point_leaves_running_is_ended_with_it(client):
    folder = project(FAMILY.format(code=SLEEP))
    assert mlflow_run().exit_code == 0
    assert only_run(client).info.status == "FINISHED"
    assert not alive(folder / "pids")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_mlflow_ends_all_processes_and_the_run_is_killed(client, number, code):
    folder = project(FAMILY.format(code=SLEEP) + SLEEP)
    command = [sys.executable, "-m", "mlflow", "run", "project", "-b", "host", "-P", "task=digits"]
    with open("errors", "w") as errors, subprocess.Popen(command, stderr=errors) as process:
        wait_for(folder / "pids")
        process.send_signal(number)
    assert process.returncode == code
    assert not alive(folder / "pids")
    assert only_run(client).info.status == "KILLED"
    assert note(only_run(client)) == f"The run was stopped by {number.name}."
    assert (
        "site-packages" not in Path("errors").read_text()
    )  # a traceback of the script, after Ctrl-C, but none of mlflow


@pytest.fixture
def send(monkeypatch):
    """Send this process signals when a file appears; one that the backend lets through fails the test."""

    def let_through(number: int, _frame: object) -> None:
        raise AssertionError(f"{signal.Signals(number).name} was not handled")

    before = {n: signal.signal(n, let_through) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def when(path: Path, *numbers: int) -> None:
        def run() -> None:
            wait_for(path)
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.5)

        threading.Thread(target=run, daemon=True).start()

    yield when
    handlers = {n: signal.signal(n, handler) for n, handler in before.items()}
    assert set(handlers.values()) <= {let_through, signal.SIG_IGN}, "the backend left its handlers behind"


def test_processes_that_ignore_the_signal_are_killed_after_a_while(client, send, monkeypatch):
    monkeypatch.setattr(child_process, "GRACE_SECONDS", 1.0)
    folder = project(FAMILY.format(code=DEAF) + DEAF)
    send(folder / "pids", signal.SIGTERM)
    result = mlflow_run()
    assert result.exit_code == 143
    assert not alive(folder / "pids")
    assert only_run(client).info.status == "KILLED"


def test_a_second_ctrl_c_does_not_wait_for_processes_that_ignore_the_first(client, send, monkeypatch):
    monkeypatch.setattr(child_process, "GRACE_SECONDS", 3600.0)
    folder = project(FAMILY.format(code=DEAF) + DEAF)
    send(folder / "pids", signal.SIGINT, signal.SIGINT)
    assert mlflow_run().exit_code == 130
    assert not alive(folder / "pids")


def test_the_run_of_a_closed_terminal_is_killed(client, send):
    folder = project(FAMILY.format(code=SLEEP) + SLEEP)
    send(folder / "pids", signal.SIGHUP)
    assert mlflow_run().exit_code == 129
    assert not alive(folder / "pids")
    assert only_run(client).info.status == "KILLED"


def test_under_nohup_a_closed_terminal_does_not_end_the_run(client, send):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    folder = project("import time; open('here', 'w'); time.sleep(1)")
    send(folder / "here", signal.SIGHUP)
    assert mlflow_run().exit_code == 0
    assert only_run(client).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        ({}, ["-e", "distil"], "Could not find distil among entry points"),
        ({"parameters": {"task": "string", "model": "string"}}, [], "missing parameters: 'model'"),
        ({"command": "python script.py {student}"}, [], "cannot be read: KeyError('student')"),
        ({}, ["-P", "a@b=1"], 'Invalid value "a@b"'),
        ({}, ["--experiment-id", "77"], "No Experiment with id=77"),
    ],
    ids=["entry point", "missing parameter", "placeholder", "parameter name", "experiment"],
)
def test_a_project_that_cannot_run_is_refused_and_leaves_no_run(client, change, words, sentence):
    project("", **change)
    refused(client, mlflow_run(*words), sentence)


def refused(client: MlflowClient, result: Result, sentence: str) -> None:
    assert result.exit_code == 1
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert not client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_a_missing_project_is_refused(client):
    refused(client, mlflow_run(), "There is no project 'project': give a folder that holds an MLproject file.")


def test_an_unreadable_mlproject_is_refused(client):
    (project("") / "MLproject").write_text("entry_points: [")
    refused(client, mlflow_run(), "The project 'project' cannot be read: ParserError")


def test_a_server_that_does_not_answer_is_named_before_any_work(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    folder = project("open('here', 'w')")
    refused(client, mlflow_run(), "The tracking server http://127.0.0.1:9 does not answer")
    assert not (folder / "here").exists()


def test_a_command_that_cannot_start_fails_the_run(client, monkeypatch):
    project("")
    monkeypatch.setenv("PATH", "/nowhere")
    result = mlflow_run()
    assert result.exit_code == 1
    assert "could not be started" in result.output
    assert "could not be started" in note(only_run(client))
    assert only_run(client).info.status == "FAILED"


def test_a_folder_that_cannot_be_written_fails_the_run_in_a_sentence(client):
    (project("") / ".compression").write_text("a file")
    result = mlflow_run()
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Cannot write to" in result.output
    assert "set COMPRESSION_HOME elsewhere" in note(only_run(client))
    assert only_run(client).info.status == "FAILED"


def test_from_python_in_any_thread_a_failed_run_raises_and_keeps_its_name(client):
    project("raise SystemExit(3)")
    raised = []

    def call() -> None:
        with pytest.raises(ExecutionException) as caught:
            mlflow.projects.run("project", parameters={"task": "digits"}, backend="host", run_name="bob")
        raised.append(caught)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert raised
    assert (only_run(client).info.status, only_run(client).info.run_name) == ("FAILED", "bob")


def test_a_server_that_goes_away_in_a_run_does_not_change_the_exit_code(client, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with subprocess.Popen(command, start_new_session=True, stdout=-3, stderr=-3) as server:
        try:
            while not answers(address):
                time.sleep(0.2)
            project(f"import os; os.killpg({server.pid}, 9)")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            result = mlflow_run()
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
    assert result.exit_code == 0
    assert "could not be set to FINISHED" in result.output
    assert "Traceback" not in result.output


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=1).ok
    except requests.ConnectionError:
        return False


ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


def test_every_script_and_every_family_of_methods_is_an_entry_point():
    scripts = {path.stem for path in (ROOT / "entrypoints").glob("*.py")}
    assert ENTRY_POINTS.keys() == scripts
    assert ENTRY_POINTS.keys() >= methods.FAMILIES.keys()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_passes_its_parameters_to_the_command_of_its_name(name):
    given = {parameter: f"given-{parameter}" for parameter in ENTRY_POINTS[name].get("parameters", {})}
    command = load_project(str(ROOT)).get_entry_point(name).compute_command(given, None)
    python, script, *words = command.split()
    assert python == "python"
    assert set(words) >= set(given.values())
    shown = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"Usage: compression {name} ")


def test_a_container_gets_secrets_by_name_and_volumes(client, tmp_path, monkeypatch):
    folder = project("")
    spec = yaml.safe_load((ROOT / "MLproject").read_text())
    (folder / "MLproject").write_text(yaml.safe_dump(PROJECT | {"docker_env": spec["docker_env"]}))
    (folder / "mine.yaml").write_text("")
    (folder / "mine.py").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "the-secret")
    monkeypatch.setenv("COMPRESSION_DATA", "data")
    run = client.create_run("0")
    launch = Launch(
        run.info.run_id,
        "0",
        f"{tmp_path}/mlruns/0/{run.info.run_id}/artifacts",
        load_project(str(folder)),
        str(folder.absolute()),
        "python script.py",
        {"recipe": "@mine.yaml", "task": "./mine.py:make"},
        str(tmp_path / "scratch"),
        {"gpus": "all"},
    )
    words, env = DockerBackend().child_command(launch)
    assert words[:4] == ["docker", "run", "--rm", "--init"]
    assert words[-6:] == ["--gpus", "all", "model-compression-lab", "bash", "-c", "python script.py"]
    assert "the-secret" not in " ".join(words)
    assert env["MLFLOW_TRACKING_PASSWORD"] == "the-secret"
    handed_on = {after for word, after in zip(words, words[1:], strict=False) if word == "--env"}
    assert {"MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "COMPRESSION_DATA"} <= handed_on
    mounts = {after for word, after in zip(words, words[1:], strict=False) if word == "--volume"}
    assert mounts == {
        f"{folder.absolute()}/mlruns:{folder.absolute()}/mlruns",
        f"{folder.absolute()}/.compression:/var/lib/compression",
        f"{tmp_path}:{tmp_path}",
        f"{tmp_path}/mlruns/0:{tmp_path}/mlruns/0",
        f"{tmp_path}/data:{tmp_path}/data:ro",
        f"{folder.absolute()}/mine.yaml:/mlflow/projects/code/mine.yaml:ro",
        f"{folder.absolute()}/mine.py:/mlflow/projects/code/mine.py:ro",
    }


@pytest.mark.parametrize(
    ("uri", "shared"), [("http://127.0.0.1:5000", True), ("http://localhost:5000", True), ("http://lab:5000", False)]
)
def test_a_server_of_this_machine_is_reached_through_its_network(client, tmp_path, monkeypatch, uri, shared):
    folder = project("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    launch = Launch("a" * 32, "0", "mlflow-artifacts:/0", load_project(str(folder)), str(folder), "true", {}, "", {})
    assert ("--network=host" in DockerBackend().child_command(launch)[0]) == shared
