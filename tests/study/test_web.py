"""The study in a real browser."""

import re
import subprocess
import sys
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import requests
from mlflow.entities import ViewType
from playwright.sync_api import expect

from compression.study import bundle_check, clock, database, forget, notes, participant_runs, participants
from compression.study.tables import utc_now
from compression.study.web.access import LocalAccess, LoginAccess
from tests.study.browser import ADMIN, browser, logins, served
from tests.study.conftest import go_on, join

EN = {"locale": "en-US", "viewport": {"width": 1000, "height": 800}}


@pytest.fixture(scope="module")
def chromium():
    with browser() as launched:
        yield launched


@pytest.fixture
def page(chromium):
    """A page of a visit of its own; anything its scripts complain about fails the test."""
    with chromium.new_context(**EN) as context:
        context.set_default_timeout(20_000)
        opened = context.new_page()
        complaints = []
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        yield opened
        assert complaints == []


@pytest.fixture
def p07(study):
    """The address of the study as p07 alone sees it."""
    with database.open_session() as session:
        participants.invite(session, "p07", "student", assignment="images")
    with served(LocalAccess("p07")) as address:
        yield address


def events(id="p07"):
    with database.open_session() as session:
        return [(e.kind, e.row) for e in clock.list_events(session, participants.find(session, id))]


def reach(until):
    """p07 consents, and does every stage before `until`."""
    with database.open_session() as session:
        go_on(session, participants.find(session, "p07"), until)


def answer_all(page):
    """Answer every question of the form with its first choice."""
    for question in page.locator("fieldset.question").all():
        question.locator("input").first.check()
    for text in page.locator("textarea").all():
        text.fill("because it is small")
    page.get_by_role("button", name="Send the answers").click()


def test_a_participant_gets_from_consent_to_hand_in(p07, page, place):
    page.goto(p07)
    take_part(page, p07, place / "bundle.zip")
    assert bundle_check.check_bundle(place / "bundle.zip").problems == []


def take_part(page, address, bundle):
    """Everything from the consent to the hand-in, which is saved as `bundle`."""
    expect(page.get_by_role("heading", name="Consent")).to_be_visible()
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="Take part").click()
    page.get_by_role("link", name="Answer").click()
    answer_all(page)
    expect(page.get_by_role("status").first).to_contain_text("your answers are kept, version 1")
    page.get_by_label("What you work on").select_option("learn/pruning")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("Learning pruning").first).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Learning: done").click()
    page.get_by_role("link", name="Answer").click()
    answer_all(page)
    launch(page)
    page.goto(f"{address}/notes")
    page.get_by_label("Note (Markdown)").fill("it **works**")
    page.get_by_role("button", name="Keep").first.click()
    page.goto(address)
    page.get_by_role("button", name="Practice: done").click()
    page.get_by_role("link", name="Answer").click()
    answer_all(page)
    page.get_by_role("link", name="Hand-in").click()
    page.get_by_role("button", name="Make the bundle").click(timeout=120_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the bundle").click()
    download.value.save_as(bundle)
    page.goto(address)
    expect(page.get_by_text("Every stage is done")).to_be_visible()


def launch(page):
    """Prune a digit classifier from the form, and watch it to its end."""
    page.get_by_role("link", name="Start a run").first.click()
    page.get_by_role("link", name="magnitude", exact=True).click()
    page.get_by_label("sparsity").first.fill("2")
    page.get_by_label("task", exact=True).fill("digits")
    page.get_by_label("model", exact=True).fill("digits_cnn_small")
    page.get_by_label("limit").fill("150")
    page.get_by_label("threads").fill("1")
    page.get_by_label("epochs", exact=True).fill("1")
    page.get_by_role("button", name="Start the run").click()
    expect(page.get_by_role("alert")).to_contain_text("sparsity=2.0 is out of range")
    page.get_by_label("sparsity").first.fill("0.6")
    page.get_by_role("button", name="Start the run").click()
    expect(page.locator("#state")).to_have_text("finished", timeout=150_000)
    expect(page.locator("#log")).to_contain_text(["compression_ratio", "size of the ONNX file"][1])
    page.get_by_role("link", name="My runs").first.click()
    page.get_by_role("rowheader").get_by_role("link").first.click()
    expect(page.get_by_role("table")).to_contain_text("sparsity")


def test_a_double_click_on_start_starts_once(p07, page):
    reach("after")
    page.goto(p07)
    page.get_by_role("button", name="Start").dblclick()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    assert events() == [("start", "learn/models")]


def test_the_same_form_sent_twice_without_a_script_starts_once(p07):
    reach("after")
    visit = requests.Session()
    form = {"csrf": token(visit, p07), "change": "start", "row": "combine"}
    for _ in range(2):
        assert visit.post(f"{p07}/clock", data=form, timeout=20).status_code == 200
    assert events() == [("start", "combine")]


def token(visit, address):
    return re.search(r'name="csrf" value="([^"]+)"', visit.get(address, timeout=20).text).group(1)


def test_a_clock_over_midnight_and_a_change_of_daylight_saving_is_shown_right(p07, chromium):
    reach("after")
    berlin = ZoneInfo("Europe/Berlin")
    with database.open_session() as session:
        participant = participants.find(session, "p07")
        clock.start(session, participant, "combine", datetime(2026, 3, 28, 23, tzinfo=berlin))
        clock.stop(session, participant, datetime(2026, 3, 29, 4, tzinfo=berlin))
    with chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin") as context:
        page = context.new_page()
        page.goto(f"{p07}/time")
        row = page.get_by_role("row", name="Combining two or more techniques").first
        expect(row).to_contain_text("4.00")
        expect(page.get_by_text("Mar 28, 2026, 11:00 PM")).to_be_visible()
        expect(page.get_by_text("Mar 29, 2026, 4:00 AM")).to_be_visible()


def test_the_database_gone_and_back(p07, page, place):
    reach("learning")
    page.goto(p07)
    file, away = place / "home" / "study.db", place / "away"
    file.rename(away)
    file.write_bytes(b"broken" * 1000)
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    assert requests.get(f"{p07}/health", timeout=20).status_code == 503
    file.unlink()
    away.rename(file)
    page.goto(p07)
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_input_that_is_script_is_shown_as_text_and_runs_nowhere(p07, page):
    reach("practice")
    evil = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }}"
    page.goto(f"{p07}/notes")
    page.get_by_label("Note (Markdown)").fill(evil)
    page.get_by_role("button", name="Keep").first.click()
    expect(page.locator("article")).to_contain_text(evil)
    page.get_by_label("The situation").fill(evil)
    page.locator("#why").fill(evil)
    page.get_by_role("button", name="Keep").last.click()
    expect(page.locator("dt")).to_contain_text("<script>")
    page.goto(f"{p07}/notes?run=%22%3E{evil[:20]}")
    assert page.title().startswith("Notes")
    assert "script-src 'self'" in requests.get(p07, timeout=20).headers["Content-Security-Policy"]


def test_input_of_a_megabyte_is_one_sentence_and_keeps_nothing(p07):
    reach("practice")
    visit = requests.Session()
    form = {"csrf": token(visit, f"{p07}/notes"), "text": "x" * 1_000_000}
    answer = visit.post(f"{p07}/notes", data=form, timeout=20)
    assert answer.status_code == 413
    assert "a form takes at most 512 KB" in answer.text
    answer = visit.post(f"{p07}/notes", data=form | {"text": "x" * 20_000}, timeout=20)
    assert "at most 10000 characters, and this has 20000" in answer.text
    assert visit.post(f"{p07}/notes", data=form | {str(n): "" for n in range(600)}, timeout=20).status_code == 413
    with database.open_session() as session:
        assert notes.list_notes(session, participants.find(session, "p07")) == []


def test_what_another_site_sends_is_refused(p07):
    reach("practice")
    for form in ({}, {"csrf": "guess"}):
        visit = requests.Session()
        visit.get(p07, timeout=20)
        assert (
            visit.post(f"{p07}/clock", data=form | {"change": "start", "row": "combine"}, timeout=20).status_code == 403
        )
    assert events() == []
    assert requests.get(p07, headers={"Host": "evil.example"}, timeout=20).status_code == 400


@pytest.mark.parametrize("path", ["/nothing", "/runs/abc", "/launches/..%2F..", "/questionnaires/x", "/launch/magic"])
def test_what_is_not_there_is_one_sentence(p07, path):
    reach("practice")
    answer = requests.get(f"{p07}{path}", timeout=60)
    assert answer.status_code in (400, 404)
    assert "Traceback" not in answer.text
    assert "That did not work" in answer.text


PATHS = (
    "/",
    "/time",
    "/notes",
    "/runs",
    "/launch",
    "/launch/magnitude",
    "/questionnaires/before",
    "/consent",
    "/launches",
)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_fits_a_phone_names_its_fields_and_works_without_a_script(p07, chromium, language):
    reach("practice")
    locale = {"en": "en-US", "zh": "zh-CN"}[language]
    with chromium.new_context(viewport={"width": 360, "height": 700}, locale=locale) as context:
        page = context.new_page()
        for path in PATHS:
            page.goto(f"{p07}{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            assert page.evaluate("document.documentElement.lang") == language
            assert page.locator("h1").count() == 1
            assert page.evaluate(NAMELESS) == [], path
    with chromium.new_context(java_script_enabled=False, locale="en-US") as context:
        page = context.new_page()
        page.goto(p07)
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()


NAMELESS = """[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')]
    .filter(e => !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label'))
    .map(e => e.outerHTML)"""


def test_the_clock_is_run_by_keyboard_alone(p07, page):
    reach("after")
    page.goto(p07)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.value") == "start":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_wrong_answers_come_back_with_the_reason_beside_each_question_and_what_was_given(p07, page):
    reach("before")
    page.goto(f"{p07}/questionnaires/before")
    page.get_by_label("What do you hope to learn?").fill("everything")
    page.get_by_role("button", name="Send the answers").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was kept yet")
    expect(page.locator("#experience")).to_contain_text("needs an answer")
    expect(page.get_by_label("What do you hope to learn?")).to_have_value("everything")
    expect(page.get_by_role("alert")).to_be_focused()


def test_the_language_is_chosen_once_and_for_good(p07, page):
    reach("learning")
    page.goto(p07)
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", name="学习", exact=True)).to_be_visible()
    with database.open_session() as session:
        assert participants.find(session, "p07").language == "zh"


def test_a_forgotten_clock_is_reminded_of(p07, page):
    reach("after")
    with database.open_session() as session:
        clock.start(session, participants.find(session, "p07"), "combine", utc_now() - timedelta(hours=9))
    page.goto(p07)
    expect(page.get_by_role("alert")).to_contain_text("has run for 9.0 hours without a sign of life")


def test_a_researcher_invites_and_sees_the_analysis_without_ids(study, page):
    with database.open_session() as session:
        participant = join(session, "p07", until="after")
        clock.start(session, participant, "tune/pruning", utc_now() - timedelta(hours=2))
        clock.stop(session, participant)
        pseudonym = participant.pseudonym
    with served(LocalAccess()) as address:
        page.goto(address)
        expect(page.get_by_role("row", name="p07")).to_contain_text("Final questionnaire")
        page.get_by_label("Id", exact=True).fill("p08")
        page.get_by_role("button", name="Invite").click()
        expect(page.get_by_role("status")).to_contain_text("p08 takes part with text classification")
        page.get_by_role("link", name="Analysis").click()
        expect(page.get_by_role("table").first).to_contain_text("tune/pruning")
        expect(page.get_by_role("img").first).to_be_visible()
        assert "p07" not in page.locator("main").inner_text()
        table = requests.get(f"{address}/analysis/times.csv", timeout=60).text
        assert pseudonym in table
        assert "p07" not in table


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def mlflow_server(server_folder):
    with logins(server_folder, {"ada": "ada-password-1", "bob": "bob-password-1"}) as uri:
        yield uri


def log_in(page, address, name, password):
    page.goto(address)
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_two_participants_do_not_see_each_other(study, mlflow_server, chromium, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    run = run_of("p01")
    with database.open_session() as session:
        for id, login in (("p01", "ada"), ("p02", "bob")):
            notes.add_note(session, join(session, id, until="practice", login=login), f"the secret of {login}")
    with (
        served(LoginAccess(mlflow_server)) as address,
        chromium.new_context(**EN) as a,
        chromium.new_context(**EN) as b,
    ):
        ada, bob = a.new_page(), b.new_page()
        log_in(ada, address, "ada", "ada-password-1")
        log_in(bob, address, "bob", "bob-password-1")
        for page, own, other in ((ada, "ada", "bob"), (bob, "bob", "ada")):
            page.goto(f"{address}/notes")
            expect(page.locator("article")).to_contain_text(f"the secret of {own}")
            assert f"the secret of {other}" not in page.content()
            for path in ("/people", "/analysis", "/analysis/times.csv"):
                assert page.goto(f"{address}{path}").status == 403
        assert ada.goto(f"{address}/runs/{run}").status == 200
        expect(ada.get_by_role("link", name="See it in MLflow")).to_have_attribute("href", re.compile(run))
        assert bob.goto(f"{address}/runs/{run}").status == 400
        ada.get_by_role("button", name="Log out ada").click()
        ada.goto(f"{address}/notes")
        expect(ada.get_by_role("heading", name="Log in")).to_be_visible()


def run_of(participant):
    import mlflow

    client = mlflow.MlflowClient()
    run = client.create_run("0", tags={"participant": participant, "method": "magnitude", "family": "prune"})
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def test_what_is_forgotten_at_a_server_waits_in_its_bin_for_the_command_that_is_told(
    study, mlflow_server, server_folder, monkeypatch
):
    for name, value in zip(("USERNAME", "PASSWORD"), ADMIN, strict=True):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    run, other = run_of("p05"), run_of("p06")
    with database.open_session() as session:
        join(session, "p05")
    left = {deletion.place: deletion.after for deletion in forget.forget("p05")}
    assert left == dict.fromkeys(left, 0) | {"runs": 1}
    words = forget.purge_command("p05").replace("…", f"sqlite:///{server_folder}/server.db").split()
    assert run in words[3]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    assert participant_runs.load_runs("p05", ViewType.ALL) == []
    assert [r.id for r in participant_runs.load_runs("p06")] == [other]


def test_only_the_servers_users_come_in_and_its_administrator_is_a_researcher(lab, mlflow_server, page):
    lab.join("p07")
    with served(LoginAccess(mlflow_server)) as address:
        log_in(page, address, "ada", "wrong-password-1")
        expect(page.get_by_role("alert")).to_contain_text("User name or password is wrong.")
        log_in(page, address, "ada", "ada-password-1")
        expect(page.get_by_role("alert")).to_contain_text("ada has not been invited")
        page.get_by_role("button", name="Log out ada").click()
        log_in(page, address, *ADMIN)
        expect(page.get_by_role("row", name="p07")).to_be_visible()
        assert requests.get(f"{address}/notes", timeout=20).url.endswith("/login")


def test_a_login_server_that_is_away_is_one_sentence(study, page):
    with served(LoginAccess("http://127.0.0.1:9")) as address:
        log_in(page, address, "ada", "x")
        expect(page.get_by_role("alert")).to_contain_text("does not say whether this login is right")


def test_the_servers_own_files_are_not_for_participants_of_a_network(lab, mlflow_server, monkeypatch):
    lab.join("p01", until="practice", login="ada")
    visit = requests.Session()
    with served(LoginAccess(mlflow_server)) as address:
        form = {"csrf": token(visit, f"{address}/login"), "login": "ada", "password": "ada-password-1"}
        visit.post(f"{address}/login", data=form, timeout=20)
        for method, field in (("magnitude", "baseline"), ("response", "student"), ("recipe", "recipe")):
            known = {"csrf": token(visit, f"{address}/launch/{method}"), "task": "digits", "model": "digits_cnn"}
            for text in ("/etc", "@/etc/passwd", "../../x", "~/x"):
                answer = visit.post(f"{address}/launch/{method}", data=known | {field: text}, timeout=60)
                assert answer.status_code == 422
                assert "cannot name a file of the server" in answer.text
        for code in ("os:getcwd", "mine.py:make"):  # nor does a task run code there
            answer = visit.post(f"{address}/launch/magnitude", data=known | {"recipe": "", "task": code}, timeout=60)
            assert answer.status_code == 422
            assert "task cannot name a file of the server" in answer.text
