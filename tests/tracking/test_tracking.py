"""Runs in a real SQLite store and on a real server that is killed: everything they log arrives in the end."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from compression import tracking
from compression.errors import UserError
from compression.tracking import lifecycle, outbox
from compression.tracking.delivery import RUN_KEY_TAG, MlflowSender
from compression.tracking.journal import REJECTED_FILE, Journal, count_undelivered
from compression.tracking.server import tracking_uri

NOTE, HOURS = "mlflow.note.content", "participant.time_hours"


def point_at(patch, uri, home):
    """The environment of a lab that logs to `uri`."""
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.setenv("COMPRESSION_HOME", str(home))
    patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)  # what other tests set
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        patch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(database, tmp_path, monkeypatch):
    """A client of the SQLite store that the lab of this test logs to."""
    point_at(monkeypatch, database, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    return MlflowClient(database)


def names(client, run_id, folder=None):
    """The artifacts of a run, by path."""
    found = client.list_artifacts(run_id, folder)
    return sorted(n for f in found for n in (names(client, run_id, f.path) if f.is_dir else [f.path]))


def steps(client, run_id, name):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


# ---- what a run logs ------------------------------------------------------------------------------------------


def test_everything_a_run_logs_is_in_mlflow(client, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "weights").write_text("w")
    (tmp_path / "one.json").write_text("{}")
    with tracking.start_run("all of it", {"stage": "train"}) as run:
        run.params({"temperature": 4.0, "layers": None})
        for step in range(250):
            run.metrics({"train_loss": step / 2, "learning_rate": 0.1}, step)
        run.metrics({"accuracy": 0.75})
        run.tag("backend", "onnxruntime")
        run.figure("curve", Figure())
        run.table("layers", [{"layer": "a", "bits": 8}, {"layer": "b", "sparsity": 0.5}])
        run.artifact(tmp_path / "one.json", "extra")
        run.artifact(tmp_path / "whole")
        run.artifacts(tmp_path / "whole", "model")
        run.dataset("digits", "scikit-learn", "0123456789" * 5, "train")
        run.note("# Result")
    seen = client.get_run(run.id)
    assert seen.info.status == "FINISHED"
    assert seen.info.run_name == "all of it"
    assert seen.data.params == {"temperature": "4.0", "layers": "None"}
    assert run.tags == {"stage": "train", "backend": "onnxruntime", NOTE: "# Result"}
    assert seen.data.tags.items() >= {"stage": "train", "backend": "onnxruntime", NOTE: "# Result"}.items()
    assert 0 < float(seen.data.tags[HOURS]) < 24
    assert seen.data.metrics == {"train_loss": 124.5, "learning_rate": 0.1, "accuracy": 0.75}
    assert steps(client, run.id, "train_loss") == run.curves["train_loss"] == [(n, n / 2) for n in range(250)]
    assert names(client, run.id) == [
        "extra/one.json", "figures/curve.png", "layers.csv", "model/weights", "whole/weights",
    ]  # fmt: skip
    [data] = seen.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", ("0123456789" * 5)[:36])
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "train")]
    assert tracking.download(f"runs:/{run.id}/layers.csv", tmp_path).read_text() == (
        "layer,bits,sparsity\na,8,\nb,,0.5\n"
    )
    assert not run.folder.exists()  # it is all in MLflow
    assert tracking.undelivered_runs() == {}


def test_a_run_goes_by_the_commit_of_this_checkout(client):
    with tracking.start_run() as run:
        pass
    here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert client.get_run(run.id).data.tags.get("mlflow.source.git.commit", "") == here.stdout.strip()


def test_metrics_that_are_not_finite_become_a_warning(client, capsys):
    with tracking.start_run() as run:
        run.metrics({"train_loss": float("nan"), "accuracy": 0.5}, step=3)
        run.metrics({"train_loss": float("inf")}, step=4)
    assert run.warnings == ["train_loss was nan at step 3; only finite values are logged."]
    assert client.get_run(run.id).data.metrics == {"accuracy": 0.5}
    assert "warning: train_loss was nan" in capsys.readouterr().err


def test_warnings_are_shown_below_the_note_and_once(client, capsys):
    with tracking.start_run() as run:
        run.warn("Over-pruned.")
        run.warn("Over-pruned.")
        run.warn("At chance.")
        run.note("# Result")
    tags = client.get_run(run.id).data.tags
    assert tags["warning"] == "Over-pruned.\nAt chance."
    assert tags[NOTE] == "# Result\n\n**Warning:** Over-pruned.\n\n**Warning:** At chance."
    assert capsys.readouterr().err.count("Over-pruned") == 1


def test_values_longer_than_mlflow_accepts_are_truncated(client):
    with tracking.start_run() as run:
        run.params({"p" * 300: "v" * 7000})
        run.tag("text", "\0" + "t" * 9000)
    data = client.get_run(run.id).data
    assert data.params == {"p" * 250: "v" * 5999 + "…"}
    assert data.tags["text"] == "t" * 7999 + "…"


def test_entries_that_mlflow_rejects_are_kept_and_reported_and_the_others_arrive(client, capsys):
    with tracking.start_run() as run:
        run.metrics({"good": 1.0, "bad@name": 2.0, "fine": 3.0})
    seen = client.get_run(run.id)
    assert seen.data.metrics == {"good": 1.0, "fine": 3.0}
    assert seen.info.status == "FINISHED"
    assert "bad@name" in (run.folder / REJECTED_FILE).read_text()
    assert str(run.folder / REJECTED_FILE) in capsys.readouterr().err
    assert tracking.undelivered_runs() == {}


# ---- how a run starts and ends --------------------------------------------------------------------------------


def leave_a_checkpoint_and_raise(run, error):
    (run.folder / "last.pt").write_text("a checkpoint")
    run.table("rows", [{"a": 1}])
    raise error


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (UserError("sparsity=2 is out of range."), "FAILED", "sparsity=2 is out of range."),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "KILLED", "Stopped by Ctrl-C."),
        (SystemExit(143), "KILLED", "Stopped by a signal."),
        (SystemExit(2), "FAILED", "Exit code 2."),
        (SystemExit(0), "FINISHED", None),
    ],
)
def test_a_run_ends_as_its_command_does(client, error, status, note):
    with pytest.raises(type(error)), tracking.start_run() as run:
        leave_a_checkpoint_and_raise(run, error)
    seen = client.get_run(run.id)
    assert (seen.info.status, seen.data.tags.get(NOTE)) == (status, note)
    assert HOURS in seen.data.tags
    kept = [] if status == "FINISHED" else ["last.pt", "run.json"]  # to resume from
    assert sorted(os.listdir(run.folder) if run.folder.exists() else []) == kept


def test_a_full_disk_fails_the_run_with_the_folder_in_its_note(client):
    with pytest.raises(UserError, match="No space left") as raised, tracking.start_run() as run:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.pt")
    assert str(run.folder) in str(raised.value)
    assert client.get_run(run.id).data.tags[NOTE] == str(raised.value)


def test_the_final_entries_fit_on_a_full_disk(client, monkeypatch, tmp_path):
    write = os.write

    def full_while_the_reserve_is_kept(file, data):
        if list(tmp_path.glob("home/runs/*/reserve")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr("compression.tracking.journal.os.write", full_while_the_reserve_is_kept)
    with pytest.raises(UserError, match="No space left") as raised, tracking.start_run() as run:
        run.metrics({"accuracy": 0.5})
    seen = client.get_run(run.id)
    assert (seen.info.status, seen.data.tags[NOTE]) == ("FAILED", str(raised.value))


def test_the_next_run_delivers_what_a_killed_one_left(client):
    dead = client.create_run("0").info.run_id
    folder = tracking.run_folder(dead)
    MlflowSender(folder).save_metadata(
        {"uri": tracking_uri(), "id": dead, "experiment": "0", "began": time.time() - 3600}
    )
    journal = Journal(folder)
    journal.append([{"metric": "loss", "value": 0.5, "step": 1, "at": time.time_ns() // 10**6}])
    journal.close()
    assert tracking.undelivered_runs() == {dead: 1}
    with tracking.start_run():
        pass
    seen = client.get_run(dead)
    assert (seen.info.status, seen.data.metrics) == ("KILLED", {"loss": 0.5})
    assert float(seen.data.tags[HOURS]) == pytest.approx(1.0, abs=0.01)
    assert tracking.undelivered_runs() == {}


def test_the_run_of_mlflow_run_is_joined_once_and_its_parameters_stay(client, monkeypatch):
    theirs = {NOTE: "Their note.", "mlflow.source.git.commit": "abc"}
    made = client.create_run("0", run_name="theirs", tags=theirs)
    client.log_param(made.info.run_id, "temperature", "4")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with tracking.start_run("ours", {"stage": "distill"}) as run:
        run.params({"temperature": 4.0, "alpha": 0.9})
        run.warn("Careful.")
        with run.child("below", {"stage": "train"}) as below:
            below.metrics({"x": 1.0})
    assert run.id == made.info.run_id
    seen = client.get_run(run.id)
    assert seen.info.run_name == "theirs"
    assert seen.data.params == {"temperature": "4", "alpha": "0.9"}
    assert seen.data.tags["mlflow.source.git.commit"] == "abc"
    assert seen.data.tags["stage"] == run.tags["stage"] == "distill"
    assert seen.data.tags[NOTE] == "Their note.\n\n**Warning:** Careful."
    tags = client.get_run(below.id).data.tags
    assert (tags["mlflow.parentRunId"], tags["stage"]) == (run.id, "train")
    assert below.tags["stage"] == "train"


def test_the_experiment_follows_the_argument_then_the_environment_then_mlflow(client, monkeypatch):
    def experiment(name=""):
        with tracking.start_run(experiment=name) as run, run.child("", {}) as below:
            pass
        ids = {client.get_run(r.id).info.experiment_id for r in (run, below)}
        assert len(ids) == 1
        return client.get_experiment(ids.pop()).name

    assert experiment() == "Default"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment("by id"))
    assert experiment() == "by id"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    assert experiment() == "by name"
    assert experiment("mine") == experiment("mine") == "mine"


def test_two_runs_that_create_an_experiment_at_the_same_moment_share_it(client, monkeypatch):
    look, looked = MlflowClient.get_experiment_by_name, []

    def look_just_before_the_other_begins(asked, name):
        found = look(asked, name)
        if not looked:
            looked.append(asked.create_experiment(name))
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", look_just_before_the_other_begins)
    with tracking.start_run(experiment="shared") as run:
        pass
    assert [client.get_run(run.id).info.experiment_id] == looked


def test_a_deleted_experiment_is_a_user_error(client):
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="'gone' was deleted"), tracking.start_run(experiment="gone"):
        pass


def test_a_run_that_another_process_writes_is_left_to_it(client, monkeypatch):
    with tracking.start_run() as run:
        monkeypatch.setenv("MLFLOW_RUN_ID", run.id)
        with pytest.raises(UserError, match="Another process"), tracking.start_run():
            pass


# ---- reading back ---------------------------------------------------------------------------------------------


def test_the_newest_finished_baseline_is_found(client):
    asked = {"task": "digits", "model": "it's a folder", "data_digest": "abc"}
    assert tracking.find_baseline(**asked) is None

    def train(experiment="", **changes):
        with tracking.start_run(tags={"stage": "train"} | asked | changes, experiment=experiment) as run:
            pass
        return run.id

    train()
    newest = train(experiment="elsewhere")
    for other in ({"task": "cifar10"}, {"model": "cnn"}, {"data_digest": "x"}, {"stage": "distill"}):
        train(**other)
    deleted = train()
    client.delete_run(deleted)
    with pytest.raises(KeyboardInterrupt), tracking.start_run(tags={"stage": "train"} | asked):
        raise KeyboardInterrupt
    assert tracking.find_baseline(**asked) == newest


def test_a_run_can_be_read_back(client):
    with tracking.start_run("mine", {"task": "digits"}) as run:
        run.params({"seed": 0})
        for step in (2, 0, 1):
            run.metrics({"val_accuracy": step / 10}, step)
    seen = tracking.get_run(run.id)
    assert (seen.id, seen.name, seen.status) == (run.id, "mine", "FINISHED")
    assert (seen.params, seen.tags["task"], seen.metrics) == ({"seed": "0"}, "digits", {"val_accuracy": 0.2})
    assert tracking.metric_history(run.id) == {"val_accuracy": [(0, 0.0), (1, 0.1), (2, 0.2)]}


def test_models_are_found_by_run_by_name_and_before_they_are_sent(client, tmp_path):
    def content(uri, to):
        return (tracking.download(uri, tmp_path / to) / "weights").read_text()

    with tracking.start_run() as run:
        (run.artifact_folder / "model").mkdir(parents=True)
        (run.artifact_folder / "model" / "weights").write_text("w")
        assert content(f"runs:/{run.id}", "early") == "w"
        tracking.write_mlmodel(run.artifact_folder / "model")
        run.artifact(run.artifact_folder / "model")
    assert content(f"runs:/{run.id}", "a") == content(f"runs:/{run.id}/model", "b") == "w"
    assert tracking.download(f"runs:/{run.id}/", tmp_path / "c").joinpath("model", "weights").exists()
    mlflow.register_model(f"runs:/{run.id}/model", "lab")
    assert content("models:/lab/1", "d") == "w"


@pytest.mark.parametrize("uri", ["runs:/nobody", "runs:/", "models:/nothing/1", "models:/", "nonsense"])
def test_downloading_a_missing_artifact_is_a_user_error(client, uri, tmp_path):
    with pytest.raises(UserError, match="Cannot download") as raised:
        tracking.download(uri, tmp_path / "to")
    assert "\n" not in str(raised.value)


def test_a_missing_run_is_a_user_error(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match="Cannot start a run.*not found"), tracking.start_run():
        pass
    for ask in (tracking.get_run, tracking.metric_history):
        with pytest.raises(UserError, match="Cannot read the run nobody.*not found"):
            ask("nobody")


# ---- a server that is not there -------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """`answering(status)`: the address of something that answers every request with `status`."""
    servers = []

    def start(status):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"You are not authenticated.")

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://lab:secret@127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def refused_sentence(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as raised:
        tracking.check_server()
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_server_that_does_not_answer_is_reported_before_any_work(client, monkeypatch):
    said = refused_sentence(f"http://lab:secret@127.0.0.1:{free_port()}", monkeypatch)
    assert "does not answer" in said
    assert "Connection refused" in said
    assert "MLFLOW_TRACKING_URI" in said


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_says_what_to_set(client, answering, monkeypatch, status):
    said = refused_sentence(answering(status), monkeypatch)
    assert "refuses the login" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said


@pytest.mark.parametrize("status", [200, 404, 500])
def test_something_else_at_that_address_is_no_server(client, answering, monkeypatch, status):
    assert "not as an MLflow server" in refused_sentence(answering(status), monkeypatch)


def test_a_store_that_cannot_be_opened_is_reported_at_once(client, tmp_path, monkeypatch):
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 10)
    assert "not a database" in refused_sentence(f"sqlite:///{tmp_path}/text.db", monkeypatch)
    assert "unable to open" in refused_sentence(f"sqlite:///{tmp_path}/no/such/folder.db", monkeypatch)


def test_a_database_that_does_not_answer_is_reported_at_once(client, monkeypatch):
    said = refused_sentence(f"postgresql+psycopg2://lab:secret@127.0.0.1:{free_port()}/mlflow", monkeypatch)
    assert "does not answer" in said
    assert "Connection refused" in said


def test_an_experiment_whose_files_lie_behind_a_server_is_refused_without_it(client):
    client.create_experiment("behind", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(UserError, match="'behind' keeps its files behind an MLflow server: set MLFLOW_TRACKING_URI"):
        tracking.start_run("a", experiment="behind").__enter__()
    assert not client.search_runs([client.get_experiment_by_name("behind").experiment_id])


def test_questions_to_a_server_that_is_gone_end_in_a_sentence(client, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://lab:secret@127.0.0.1:{free_port()}")
    questions = [
        lambda: tracking.find_baseline("digits", "cnn", "abc"),
        lambda: tracking.get_run("abc"),
        lambda: tracking.download("runs:/abc", tmp_path / "to"),
        lambda: tracking.start_run().__enter__(),
    ]
    for ask in questions:
        with pytest.raises(UserError, match="Connection refused") as raised:
            ask()
        assert "secret" not in str(raised.value)


# ---- a server that is killed ----------------------------------------------------------------------------------


class Server:
    """`mlflow server` on a store of its own, which survives it."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        store += ["--artifacts-destination", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *store]
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self.answers():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.1)

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


CRASHING = """
import sys, time
from compression import tracking
with tracking.start_run("crashes", {"stage": "train"}) as run:
    print(run.id, flush=True)
    run.params({"seed": 7})
    run.note("Their note.")
    for step in range(10):
        if step == 5:
            sys.stdin.readline()  # the server gets killed
        run.metrics({"loss": step}, step)
    run.table("rows", [{"a": 1}])
    (run.folder / "last.pt").write_text("a checkpoint")
    print("said all", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def outage(tmp_path_factory):
    """Three runs and a server that is killed in the middle of them and comes back later.

    `ends` ends while the server is gone, with a child that was started then; `goes_on` still runs when it is back;
    `crashes` is killed, with its process, while it is gone.
    """
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    seen = SimpleNamespace(client=MlflowClient(server.uri), home=tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, server.uri, seen.home)
        patch.setattr(outbox, "MIN_BACKOFF", 0.1)
        patch.setattr(outbox, "MAX_BACKOFF", 0.5)
        patch.setattr(lifecycle, "END_TIMEOUT", 0.5)
        tracking.check_server()
        crashing = subprocess.Popen(
            [sys.executable, "-c", CRASHING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        seen.crashes = crashing.stdout.readline().strip()
        with tracking.start_run("goes on") as goes_on:
            with tracking.start_run("ends") as ends:
                seen.goes_on, seen.ends, seen.folder = goes_on.id, ends.id, ends.folder
                log_something(ends, range(10))
                log_something(goes_on, range(10))
                while not steps(seen.client, goes_on.id, "loss") or not steps(seen.client, ends.id, "loss"):
                    time.sleep(0.05)
                server.kill()
                crashing.stdin.write("go\n")
                crashing.stdin.flush()
                assert crashing.stdout.readline() == "said all\n"
                crashing.kill()
                crashing.wait()
                with ends.child("below", {}) as below:
                    log_something(below, range(5))
                    with below.child("deep", {}) as deep:
                        deep.metrics({"x": 1.0})
                    (below.artifact_folder / "model").mkdir()
                    (below.artifact_folder / "model" / "weights").write_text("w")
                    below.artifact(below.artifact_folder / "model")
                seen.model = tracking.download(f"runs:/{below.id}", seen.home / "here").joinpath("weights").read_text()
                log_something(ends, range(10, 20))
            seen.waiting = count_undelivered(ends.folder)
            seen.unsent = tracking.undelivered_runs()
            seen.sent_while_gone = tracking.sync()
            log_something(goes_on, range(10, 20))
            server.start()
        seen.synced = tracking.sync()
        while tracking.undelivered_runs():  # the threads of the runs that ended here go on trying
            time.sleep(0.05)
        yield seen
    server.kill()


def log_something(run, span):
    for step in span:
        run.metrics({"loss": step / 4, "rate": 1.0}, step)
    run.params({f"p{span[0]}": span[0]})
    run.tag("last", str(span[-1]))
    run.table(f"table{span[0]}", [{"a": span[0]}])


def test_a_run_that_is_still_going_when_the_server_is_back_loses_nothing(outage):
    seen = outage.client.get_run(outage.goes_on)
    assert seen.info.status == "FINISHED"
    assert steps(outage.client, outage.goes_on, "loss") == [(n, n / 4) for n in range(20)]
    assert seen.data.params == {"p0": "0", "p10": "10"}
    assert seen.data.tags["last"] == "19"
    assert names(outage.client, outage.goes_on) == ["table0.csv", "table10.csv"]


def test_a_run_that_ends_during_an_outage_ends_well_and_keeps_its_entries(outage):
    assert outage.waiting == outage.unsent[outage.ends] > 20
    assert outage.sent_while_gone == 0


def test_the_entries_of_a_run_that_ended_during_an_outage_arrive_later(outage):
    seen = outage.client.get_run(outage.ends)
    assert seen.info.status == "FINISHED"
    assert steps(outage.client, outage.ends, "loss") == [(n, n / 4) for n in range(20)]
    assert seen.data.params == {"p0": "0", "p10": "10"}
    assert seen.data.tags["last"] == "19"
    assert HOURS in seen.data.tags
    assert names(outage.client, outage.ends) == ["table0.csv", "table10.csv"]
    assert not outage.folder.exists()


def test_a_child_can_start_and_be_read_without_a_server_and_is_made_there_once(outage):
    assert outage.model == "w"
    [below] = outage.client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{outage.ends}'")
    assert (below.info.run_name, below.info.status) == ("below", "FINISHED")
    assert steps(outage.client, below.info.run_id, "loss") == [(n, n / 4) for n in range(5)]
    assert names(outage.client, below.info.run_id) == ["model/weights", "table0.csv"]
    [deep] = outage.client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{below.info.run_id}'")
    assert deep.data.metrics == {"x": 1.0}


def test_a_killed_process_loses_nothing_and_its_run_is_not_left_running(outage):
    assert outage.synced > 5
    seen = outage.client.get_run(outage.crashes)
    assert seen.info.status == "KILLED"
    assert seen.info.end_time >= seen.info.start_time
    assert steps(outage.client, outage.crashes, "loss") == [(n, float(n)) for n in range(10)]
    assert seen.data.params == {"seed": "7"}
    assert seen.data.tags["stage"] == "train"
    assert seen.data.tags[NOTE].startswith("The process ended before it could end the run")
    assert seen.data.tags[NOTE].endswith("Their note.")
    assert HOURS in seen.data.tags
    assert names(outage.client, outage.crashes) == ["rows.csv"]
    folder = outage.home / "runs" / outage.crashes
    assert sorted(os.listdir(folder)) == ["last.pt", "run.json"]  # to resume from


def test_no_run_is_created_twice(outage):
    everything = outage.client.search_runs(["0"])
    assert sorted(run.info.run_name for run in everything) == ["below", "crashes", "deep", "ends", "goes on"]


def test_a_run_that_started_during_an_outage_is_found_by_its_key(client, tmp_path):
    key = "5" * 32
    made = client.create_run("0", tags={RUN_KEY_TAG: key})
    client.log_text(made.info.run_id, "{}", "model/spec.json")
    client.log_metric(made.info.run_id, "accuracy", 0.9)
    assert tracking.get_run(key).metrics == {"accuracy": 0.9}
    assert (tracking.download(f"runs:/{key}/model", tmp_path / "got") / "spec.json").read_text() == "{}"
    version = tracking.register_model("kept", key, ["smallest"])
    assert client.get_model_version("kept", version).run_id == made.info.run_id
    with pytest.raises(UserError, match="not found"):
        tracking.get_run("6" * 32)
