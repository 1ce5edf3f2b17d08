"""Attacks on the study's web app, counted."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from mlflow import MlflowClient

from compression import params
from compression.errors import UserError
from compression.study import analysis, database, figures, launches, participant_runs, reading
from compression.study.web.access import LocalAccess
from compression.study.web.brake import Brake, TooManyLoginsError
from tests.study.browser import served
from tests.study.conftest import join, made, place, session, study  # noqa: F401 - fixtures
from tests.study.test_between_participants import PASSWORDS, address, log_in, set_account, uri  # noqa: F401 - fixtures
from tests.study.test_reading import FORBIDDEN, gate, holders, run_in  # noqa: F401 - a fixture
from tests.study.test_strangers import HOURS, NAMES

pytestmark = pytest.mark.faults
TAGS = ("participant", "participant.time_hours", "participant.stage", "stage", "family", "method", "mlflow.parentRunId")
METRICS = ("accuracy_kept", "compression_ratio", "accuracy", "accuracy_before", "speedup")


def hostile_tags(rng):
    values = [*NAMES, *(hours for hours in HOURS if "\x00" not in hours), "p01", "compress", "prune", "practice"]
    return {"participant": "p01"} | {tag: rng.choice(values)[:4000] or "x" for tag in rng.sample(TAGS[1:], 4)}


def test_runs_of_one_participant_on_the_pages_of_another(address, uri, tally):  # noqa: F811
    rng, written = random.Random(3), []
    with pytest.MonkeyPatch.context() as patch:
        set_account(patch, uri, "p02", PASSWORDS["p02"])
        client = MlflowClient()
        names = ["p02", *(f"p01{rng.choice('_-. x')}{n}" for n in range(5))]
        known = [client.get_experiment_by_name(name) for name in names]
        ids = [k.experiment_id if k else client.create_experiment(n) for k, n in zip(known, names, strict=True)]
        for _ in range(40):
            run = client.create_run(rng.choice(ids), tags=hostile_tags(rng)).info.run_id
            for metric in METRICS:
                client.log_metric(run, metric, rng.choice([1e308, -1e308, 0.0, 1e-300, 1e18]))
            client.set_terminated(run)
            written.append(run)
    leaked = len({run.id for run in participant_runs.load_runs("p01")} & set(written))
    (one, _), (researcher, _) = log_in(address, "p01"), log_in(address, "admin", "a-password-for-tests")
    pages = [(one, path) for path in ("/", "/runs", "/time", "/hand-in")]
    pages += [(researcher, path) for path in ("/people", "/analysis")]
    answers = [visit.get(f"{address}{path}", timeout=120) for visit, path in pages]
    leaked += sum(run in answer.text for run in written for answer in answers)
    stuck = sum(answer.status_code != 200 for answer in answers)
    tally("runs of a stranger, on the pages of another", tried=len(written), leaked=leaked, stuck=stuck)


def test_hostile_runs_of_ones_own(study, tally, real_pictures):  # noqa: F811
    with database.open_session() as opened:
        join(opened, "p01", until="hand-in")
    rng, client = random.Random(4), MlflowClient()
    for _ in range(60):
        run = client.create_run("0", rng.randrange(1, 10**13), hostile_tags(rng)).info.run_id
        for metric in METRICS:
            client.log_metric(run, metric, rng.choice([float("nan"), float("inf"), 1e308, -1e308, 1e-300, 1.0]))
        client.set_terminated(run, "FINISHED", rng.randrange(1, 10**17))
    with database.open_session() as opened:
        tables = analysis.build_tables(opened)
    json.dumps(tables, allow_nan=False)
    figures.draw_figures(tables)
    with served(LocalAccess("p01")) as one, served(LocalAccess()) as researcher:
        pages = [f"{one}{path}" for path in ("/", "/runs", "/time", "/hand-in")] + [f"{researcher}/analysis"]
        pages += [f"{one}/runs/{run.id}" for run in participant_runs.load_runs("p01")]
        stuck = sum(requests.get(page, timeout=300).status_code != 200 for page in pages)
    tally("hostile runs of one's own, pages", tried=len(pages), stuck=stuck)


def test_addresses_in_every_field_of_every_method(gate, tally):  # noqa: F811
    theirs = run_in("p02", participant="p01", stage="train")
    addresses = [*FORBIDDEN, f"runs:/{theirs}", f"runs:/{theirs}/model", f"runs:/{theirs}/model/model.json"]
    tried = leaked = 0
    for holder in holders():
        for name, field in params.fields(holder).items():
            if field.kind.place:
                for address in addresses:  # noqa: F402 - the fixture is not used here
                    tried += 1
                    try:
                        reading.check_addresses(holder(**{name: (address,) if field.kind.container else address}), gate)
                    except UserError:
                        continue
                    leaked += 1
    tally("addresses that are not the participant's", tried=tried, leaked=leaked)


def test_launches_cut_at_every_byte(study, tally):  # noqa: F811
    folder = launches.launch_folder("p07") / "20260101-000000-000000"
    folder.mkdir(parents=True)
    whole = {
        "command.json": json.dumps({"words": ["prune", "magnitude"], "at": "2026-01-01T00:00:00+00:00"}),
        "process.json": "[4000000, 1.5]",
        "exit": "137",
    }
    tried = stuck = 0
    for cut, content in whole.items():
        for length in range(len(content)):
            for name, text in whole.items():
                (folder / name).write_text(text[:length] if name == cut else text)
            tried += 1
            try:
                for launch in launches.list_launches("p07"):
                    assert launch.state in ("finished", "failed", "lost", "running")
                    assert (launch.log, launch.command, launch.started.year) == ("", ["prune", "magnitude"], 2026)
            except Exception:  # noqa: BLE001 - the count is the result
                stuck += 1
    tally("launches half written", tried=tried, stuck=stuck)


def test_guesses_at_once_and_the_honest_between_them(tally):
    """Guesses in 8 threads at one account, while its owner logs in from a browser that is known."""
    now = time.monotonic()
    held = Brake(free=5, longest=30.0, now=lambda: now)
    tried, stuck = 304, 0

    def guess(_):
        try:
            held.begin("login ada")
        except TooManyLoginsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        guesses = pool.map(guess, range(tried))
        for _ in range(20):
            try:
                held.begin("device of ada")
                held.forgive("device of ada", None)
            except TooManyLoginsError:
                stuck += 1
    tally("guesses at a password", tried=tried, leaked=max(0, sum(guesses) - 5), stuck=stuck)
