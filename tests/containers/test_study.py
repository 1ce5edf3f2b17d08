"""The study as the stack serves it: a participant behind MLflow's logins, from consent to hand-in, in a browser."""

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from playwright.sync_api import expect

from compression.cli import cli
from compression.study import bundle_check
from tests.study.browser import browser
from tests.study.test_web import EN, log_in, take_part

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]


@pytest.fixture
def people(stack, client):
    """p07 and p08 with accounts, invited to the study; their passwords."""
    passwords = {"p07": "the seventh password", "p08": "the eighth password"}
    for name, password in passwords.items():
        assert CliRunner().invoke(cli, ["users", "add", name], input=f"{password}\n").exit_code == 0
        stack("exec", "-T", "study", "compression", "study", "invite", name, "--background", "student")
    return passwords


def test_a_participant_takes_part_and_finds_their_runs_in_mlflow_alone(stack, people, tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{stack.ports['STUDY_PORT']}"
    with browser() as chromium, chromium.new_context(**EN) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        log_in(page, address, "p07", people["p07"])
        page.goto(address)
        take_part(page, address, tmp_path / "bundle.zip")
    assert bundle_check.check_bundle(tmp_path / "bundle.zip").problems == []
    for name, sees in (("p07", 2), ("p08", 0)):  # the run that was started, and its baseline
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", people[name])
        theirs = MlflowClient(stack.uri)
        experiments = [e.experiment_id for e in theirs.search_experiments()]
        assert len(experiments) == 1
        assert len(theirs.search_runs(experiments)) == sees
    with browser() as chromium, chromium.new_context(**EN) as context:
        page = context.new_page()
        log_in(page, address, "admin", stack.passwords["MLFLOW_ADMIN_PASSWORD"])
        expect(page.get_by_role("row", name="p07")).to_be_visible()
