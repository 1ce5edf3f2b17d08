"""`compression doctor` on a machine on which things are missing."""

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from compression.backend import doctor, engine
from compression.cli import cli
from compression.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COMPRESSION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("COMPRESSION_DATA", raising=False)
    return tmp_path


def result(name):
    return next(finding for finding in doctor.run_checks() if finding.name == name)


def test_without_docker_runs_still_can_begin():
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 0
    lines = {line.split()[1]: line for line in done.output.splitlines()}
    assert lines["engine"].startswith("no ")
    assert "or run with `-b host`, which needs no Docker" in lines["engine"]
    assert lines["server"].startswith("ok ")
    assert lines["disk"].startswith("ok ")


def test_a_server_that_is_gone_is_needed(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = CliRunner().invoke(cli, ["doctor"])
    assert isinstance(done.exception, UserError)
    assert "No run can begin without: server" in str(done.exception)
    assert "does not answer" in done.output


def test_runs_whose_container_never_came_are_found_and_closed(monkeypatch):
    store = MlflowClient()
    tags = {"mlflow.project.env": "docker"}
    stuck = store.create_run("0", start_time=1, tags=tags).info.run_id
    others = [
        store.create_run("0", tags=tags),  # made this moment: its container may be on its way
        store.create_run("0", start_time=1, tags=tags | {"stage": "compress"}),  # an entry point works on it
        store.create_run("0", start_time=1),  # somebody's own
    ]
    assert "1 runs are RUNNING whose container never came" in result("runs").message
    assert "Closed 1 runs." in CliRunner().invoke(cli, ["doctor", "--close-runs"]).output
    assert store.get_run(stuck).info.status == "FAILED"
    assert "container never came" in store.get_run(stuck).data.tags["mlflow.note.content"]
    assert {store.get_run(run.info.run_id).info.status for run in others} == {"RUNNING"}
    assert result("runs").ok


def test_a_full_disk_is_needed(monkeypatch):
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1e18)
    finding = result("disk")
    assert not finding.ok
    assert finding.is_required
    assert "make room" in finding.message


def test_a_data_folder_that_does_not_exist(monkeypatch, here):
    monkeypatch.setenv("COMPRESSION_DATA", str(here / "nowhere"))
    assert "is no folder; set it to one that holds" in result("data").message
    (here / "data" / "cifar10").mkdir(parents=True)
    monkeypatch.setenv("COMPRESSION_DATA", str(here / "data"))
    assert result("data").ok
    assert "cifar10" in result("data").message


def test_the_error_about_an_engine_that_does_not_answer_says_what_to_do():
    with pytest.raises(UserError, match=r"No Docker engine answers .*systemctl start docker"):
        engine.connect()
