"""Accounts at a real MLflow server with logins: who writes where, and who reads what."""

from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests.exceptions import HTTPError

from compression.cli import cli
from compression.errors import UserError
from tests.study.browser import ADMIN, logins

PEOPLE = {"p07": "the seventh password", "p08": "the eighth password", "ada": "a researcher's password"}
PEOPLE |= {"study": "the app's own password"}
DENIED = (MlflowException, HTTPError)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server where two participants and a researcher were added through the command line."""
    with logins(tmp_path_factory.mktemp("server"), {}) as address, pytest.MonkeyPatch.context() as patch:
        be(patch, address, ADMIN)
        for name, password in PEOPLE.items():
            role = {"ada": "researcher", "study": "app"}.get(name, "participant")
            done = run_users("add", name, "--role", role, said=password)
            assert done.exit_code == 0, done.output
        yield address
    mlflow.set_tracking_uri(None)


def be(patch, address, login):
    mlflow.set_tracking_uri(address)
    patch.setenv("MLFLOW_TRACKING_USERNAME", login[0])
    patch.setenv("MLFLOW_TRACKING_PASSWORD", login[1])


def run_users(*words, said=""):
    return CliRunner().invoke(cli, ["users", *words], input=said + "\n")


@pytest.fixture
def as_user(server, monkeypatch):
    def become(name):
        be(monkeypatch, server, ADMIN if name == ADMIN[0] else (name, PEOPLE[name]))
        return MlflowClient(server)

    return become


@pytest.fixture
def theirs(as_user):
    """A finished run of p07 with a metric and a file."""
    client = as_user("p07")
    run = client.create_run(client.get_experiment_by_name("p07").experiment_id)
    client.log_metric(run.info.run_id, "accuracy", 0.9)
    client.log_text(run.info.run_id, "words", "notes.txt")
    client.set_terminated(run.info.run_id)
    return run.info


def test_a_participant_sees_and_writes_an_experiment_of_their_own_alone(as_user, theirs):
    assert [e.name for e in as_user("p07").search_experiments()] == ["p07"]
    stranger = as_user("p08")
    assert [e.name for e in stranger.search_experiments()] == ["p08"]
    assert stranger.search_runs([theirs.experiment_id]) == []


@pytest.mark.parametrize(
    "reach",
    [
        lambda client, run: client.get_run(run.run_id),
        lambda client, run: client.get_metric_history(run.run_id, "accuracy"),
        lambda client, run: client.list_artifacts(run.run_id),
        lambda client, run: client.download_artifacts(run.run_id, "notes.txt"),
        lambda client, run: client.log_metric(run.run_id, "accuracy", 1.0),
        lambda client, run: client.log_text(run.run_id, "mine", "notes.txt"),
        lambda client, run: client.set_tag(run.run_id, "participant", "p08"),
        lambda client, run: client.create_run(run.experiment_id),
        lambda client, run: client.delete_run(run.run_id),
        lambda client, run: client.get_experiment(run.experiment_id),
        lambda client, run: client.create_run("0"),
    ],
    ids=["run", "history", "list", "download", "metric", "file", "tag", "create", "delete", "experiment", "default"],
)
def test_a_participant_cannot_access_the_runs_and_files_of_another(as_user, theirs, reach):
    with pytest.raises(DENIED, match="403|PERMISSION|denied"):
        reach(as_user("p08"), theirs)


def test_files_cannot_be_downloaded_by_their_url_either(server, theirs):
    path = f"mlflow-artifacts/artifacts/{theirs.experiment_id}/{theirs.run_id}/artifacts/notes.txt"
    addresses = [f"{server}/{api}/2.0/{path}" for api in ("api", "ajax-api")]
    addresses.append(f"{server}/get-artifact?run_uuid={theirs.run_id}&path=notes.txt")
    for address in addresses:
        assert requests.get(address, auth=("p08", PEOPLE["p08"]), timeout=10).status_code == 403, address
        assert requests.get(address, auth=("p07", PEOPLE["p07"]), timeout=10).text == "words", address


def test_a_researcher_reads_everything_and_writes_nothing(as_user, theirs, tmp_path):
    client = as_user("ada")
    assert {"p07", "p08"} <= {e.name for e in client.search_experiments()}
    assert client.get_run(theirs.run_id).data.metrics == {"accuracy": 0.9}
    assert Path(client.download_artifacts(theirs.run_id, "notes.txt", str(tmp_path))).read_text() == "words"
    for write in (lambda: client.log_metric(theirs.run_id, "accuracy", 1.0), lambda: client.delete_run(theirs.run_id)):
        with pytest.raises(DENIED):
            write()


def test_the_app_reads_everything_and_writes_the_experiments_of_participants_alone(as_user, theirs):
    as_user(ADMIN[0]).create_experiment("of a researcher")
    assert run_users("add", "p12", said="the twelfth password").exit_code == 0  # after the app; p07 was before it
    client = as_user("study")
    assert client.get_run(theirs.run_id).data.metrics == {"accuracy": 0.9}
    for name in ("p07", "p12"):
        run = client.create_run(client.get_experiment_by_name(name).experiment_id)
        client.set_terminated(run.info.run_id)
    with pytest.raises(DENIED):
        client.create_run(client.get_experiment_by_name("of a researcher").experiment_id)
    assert "403" in str(run_users("add", "p11", said="the eleventh password").exception)
    assert "403" in str(run_users("passwd", "p07", said="another seventh password").exception)


def test_an_experiment_that_somebody_made_under_the_name_of_another_is_not_given_to_them(as_user):
    as_user("p07").create_experiment("p13")
    as_user(ADMIN[0])
    refused = run_users("add", "p13", said="the thirteenth password").exception
    assert "There is an experiment p13 already, which p07 may write" in str(refused)
    assert "p13" not in run_users("list").output


def test_the_apps_account_has_one_name(as_user):
    as_user(ADMIN[0])
    refused = run_users("add", "somebody", "--role", "app", said="a password of theirs").exception
    assert str(refused) == "The account of the study's web app is called study, and not somebody."


def test_nothing_but_health_answers_without_a_login(server):
    assert requests.get(f"{server}/health", timeout=10).status_code == 200
    for path in ("", "api/2.0/mlflow/experiments/search?max_results=1", "api/2.0/mlflow/users/list", "version"):
        assert requests.get(f"{server}/{path}", timeout=10).status_code == 401, path


def test_adding_somebody_again_changes_neither_rights_nor_password(as_user, server):
    as_user(ADMIN[0])
    for role in ("participant", "researcher"):
        name = "ada" if role == "researcher" else "p07"
        assert run_users("add", name, "--role", role, said="another password").exit_code == 0
        asked = f"{server}/api/2.0/mlflow/users/current"
        assert requests.get(asked, auth=(name, PEOPLE[name]), timeout=10).status_code == 200


def test_passwords_are_replaced_and_users_removed(as_user, server):
    as_user(ADMIN[0])
    assert run_users("add", "p09", said="the ninth password").exit_code == 0
    assert run_users("passwd", "p09", said="another ninth password").exit_code == 0
    assert "p09" in run_users("list").output
    asked = f"{server}/api/2.0/mlflow/users/current"
    assert requests.get(asked, auth=("p09", "the ninth password"), timeout=10).status_code == 401
    assert requests.get(asked, auth=("p09", "another ninth password"), timeout=10).status_code == 200
    assert run_users("remove", "p09").exit_code == 0
    assert "p09" not in run_users("list").output


@pytest.mark.parametrize(
    ("words", "said", "sentence"),
    [
        (("add", "p10"), "short", "at least 12 characters"),
        (("remove", "nobody"), "", "nobody"),
    ],
)
def test_a_refusal_of_the_server_is_a_user_error(as_user, words, said, sentence):
    as_user(ADMIN[0])
    refused = run_users(*words, said=said).exception
    assert isinstance(refused, UserError)
    assert sentence in str(refused)
    assert "password" not in str(refused).lower().replace("password must", "")


def test_a_participant_adds_nobody(as_user):
    as_user("p07")
    assert "403" in str(run_users("add", "p11", said="the eleventh password").exception)


def test_a_store_without_users_says_so(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    assert "has no users; set MLFLOW_TRACKING_URI" in str(run_users("list").exception)
