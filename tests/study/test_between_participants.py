"""Several participants and one MLflow server with logins: nobody reads, writes or holds up another."""

import re
import subprocess
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from compression import methods, params
from compression.study import database, launches, participant_runs
from compression.study.web.access import LoginAccess
from compression.study.web.brake import Brake
from compression.tracking import users
from tests.study.browser import ADMIN, logins, served
from tests.study.conftest import join

PASSWORDS = {name: f"the password of {name}" for name in ("p01", "p02", "res")}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """An MLflow server on which every participant has an account and an experiment, as `compression users add` does."""
    with logins(tmp_path_factory.mktemp("server"), {}) as address, pytest.MonkeyPatch.context() as patch:
        set_account(patch, address, *ADMIN)
        for name, role in (("p01", "participant"), ("p02", "participant"), ("res", "researcher")):
            users.add(name, role, PASSWORDS[name])
        yield address


def set_account(patch, uri, name, password):
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


@pytest.fixture
def address(study, uri, monkeypatch):
    """Where the study is served, with the server's administrator as the app's own account."""
    set_account(monkeypatch, uri, *ADMIN)
    with database.open_session() as session:
        for name in ("p01", "p02"):
            join(session, name, until="hand-in")
    with served(LoginAccess(uri, accounts=Brake(free=5, longest=30.0, now=lambda: 0.0))) as found:
        yield found


def token(visit, address):
    return re.search(r'name="csrf" value="([^"]+)"', visit.get(address, timeout=60).text).group(1)


def log_in(address, name, password="", visit=None):
    visit = visit or requests.Session()
    form = {"csrf": token(visit, f"{address}/login"), "login": name, "password": password or PASSWORDS[name]}
    return visit, visit.post(f"{address}/login", data=form, timeout=60, allow_redirects=False)


def run_as(uri, name, experiment, **tags):
    """The id of a finished run that `name` writes, with their own account, into an experiment that they may make."""
    with pytest.MonkeyPatch.context() as patch:
        set_account(patch, uri, name, PASSWORDS.get(name) or ADMIN[1])
        client = MlflowClient()
        found = client.get_experiment_by_name(experiment)
        run = client.create_run(found.experiment_id if found else client.create_experiment(experiment), tags=tags)
        client.log_metric(run.info.run_id, "accuracy_kept", 1.0)
        client.set_terminated(run.info.run_id)
        return run.info.run_id


def test_what_one_participant_writes_is_on_no_page_of_another(address, uri):
    tags = {"participant": "p01", "family": "prune", "stage": "compress", "participant.time_hours": "abc"}
    own = run_as(uri, "p01", "p01", participant="p01", family="prune")
    written = [run_as(uri, "p02", name, **tags) for name in ("p02", "p01 as well", "p01-", "study")]
    (one, _), (researcher, _) = log_in(address, "p01"), log_in(address, *ADMIN)
    pages = {path: one.get(f"{address}{path}", timeout=60) for path in ("/", "/runs", "/time", "/hand-in")}
    assert {path: page.status_code for path, page in pages.items()} == dict.fromkeys(pages, 200)
    assert own in pages["/runs"].text
    for run in written:
        assert not any(run in page.text for page in pages.values())
        assert one.get(f"{address}/runs/{run}", timeout=60).status_code == 400
    for path in ("/people", "/analysis"):
        assert researcher.get(f"{address}{path}", timeout=60).status_code == 200
    assert {run.id for run in participant_runs.load_runs("p01")} == {own}


def test_the_form_takes_no_address_of_others_in_any_field(address, uri):
    theirs = f"runs:/{run_as(uri, 'p02', 'p02', participant='p01', stage='train')}/model"
    visit, _ = log_in(address, "p01")
    known = {"csrf": token(visit, f"{address}/launch/magnitude"), "task": "digits", "model": "digits_cnn"}
    forms = [("magnitude", {name: theirs}) for name in ("task", "model", "baseline")]
    for method in ("response", "multi_teacher", "mutual", "progressive", "self_distill"):
        places = [name for name, field in params.fields(methods.method(method)).items() if field.kind.place]
        forms += [(method, {name: text}) for name in places for text in (theirs, "home")]
    forms += [
        ("recipe", {"recipe": f"magnitude+response:teacher={text}"}) for text in (theirs, "/etc", "home", "a/b/c")
    ]
    for method, form in forms:
        answer = visit.post(f"{address}/launch/{method}", data=known | form, timeout=60, allow_redirects=False)
        assert answer.status_code == 422, (method, form)
        assert re.search("cannot name a file of the server|it is no model of a run of yours", answer.text), (
            method,
            form,
        )
    assert launches.list_launches("p01") == []


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 300_000, "a\nb\r\nc", "\x1b[2J", "\u202e", "x" * 501], ids=["NUL", *"3nebl"]
)
def test_a_name_that_is_none_starts_nothing(address, name):
    visit, _ = log_in(address, "p01")
    form = {"csrf": token(visit, f"{address}/notes"), "task": "digits", "model": "digits_cnn", "run_name": name}
    answer = visit.post(f"{address}/launch/magnitude", data=form, timeout=60, allow_redirects=False)
    assert answer.status_code in (400, 422)
    assert "Traceback" not in answer.text
    assert launches.list_launches("p01") == []
    for path, field in (("notes", "text"), ("time", "reason")):
        answer = visit.post(f"{address}/{path}", data=form | {field: name}, timeout=60, allow_redirects=False)
        assert answer.status_code in (303, 400, 413)


def test_a_login_ends_on_the_server_also_for_a_copy_of_its_cookie(address):
    visit, _ = log_in(address, "p01")
    copy = requests.Session()
    copy.cookies.update(visit.cookies)
    assert copy.get(f"{address}/notes", timeout=60, allow_redirects=False).status_code == 200
    visit.post(f"{address}/logout", data={"csrf": token(visit, f"{address}/notes")}, timeout=60)
    assert copy.get(f"{address}/notes", timeout=60, allow_redirects=False).headers["location"] == "/login"
    again, _ = log_in(address, "p01")
    assert again.get(f"{address}/notes", timeout=60, allow_redirects=False).status_code == 200
    assert copy.get(f"{address}/notes", timeout=60, allow_redirects=False).status_code == 303


def test_guessing_is_held_up_and_the_honest_are_not(address):
    known, answer = log_in(address, "p01")
    assert answer.status_code == 303
    stranger = requests.Session()
    said = [log_in(address, "p01", f"guess {n}", stranger)[1] for n in range(7)]
    assert [answer.status_code for answer in said] == [403] * 5 + [429] * 2
    assert "too many wrong logins; try again in 2 s" in said[-1].text
    assert log_in(address, "p02")[1].status_code == 303  # from the same address
    known.post(f"{address}/logout", data={"csrf": token(known, f"{address}/notes")}, timeout=60)
    assert log_in(address, "p01", visit=known)[1].status_code == 303  # a browser in which p01 has been before


@pytest.mark.parametrize(("name", "password"), [("p01:x", "y"), ("", ""), ("x" * 300, "y"), ("p01", "x" * 2000)])
def test_what_is_no_name_or_no_password_is_not_even_asked_for(address, name, password):
    assert log_in(address, name, password or " ")[1].status_code == 403


def test_the_app_of_the_containers_takes_https(tmp_path):
    (tmp_path / "compression").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "compression").chmod(0o755)
    script = Path(__file__).parents[2] / "docker" / "study.sh"
    plain = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STUDY_NAMES": "study.example"}
    for words, environment, has in (([], {}, False), (["--https"], {}, True), ([], {"STUDY_HTTPS": "1"}, True)):
        done = subprocess.run(
            ["bash", script, *words], env=plain | environment, capture_output=True, text=True, check=True
        )
        created, served = done.stdout.splitlines()
        assert created == "study create --once"
        assert served.startswith("study web --host 0.0.0.0 --port 8090 --name study.example")
        assert ("--https" in served) == has
