"""Runs are written by strangers: whatever they say, pages, time sheets and the analysis stand."""

import json
import random

import pytest
import requests

from compression.reporting.report import data_uri
from compression.study import analysis, bundle, database, figures, participant_runs, participants, timesheet
from compression.study.observer import StudyObserver
from compression.study.web.access import LocalAccess
from tests.study.browser import served
from tests.study.conftest import join
from tests.study.test_runs import Listener, lines, record  # noqa: F401 - a fixture

HOURS = (
    "abc",
    "nan",
    "inf",
    "-inf",
    "1e300",
    "-100000000",
    "1e5",
    "",
    " ",
    "1_0e9",
    "0x10",
    "٣",
    "1e-400",
    "\x00",
    "9" * 5000,
)
METRICS = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 1e-320, -1.0, 0.0)
NAMES = (
    r"$\frac{",
    "$$",
    "x" * 4000,
    "<b>" * 500,
    "a\nb",
    "\u202e",
    "_hidden",
    "{}",
    "%s",
    "\x1b[2J",
    "",
    "+",
    "é+日本",
)


@pytest.fixture
def hostile(study, record):  # noqa: F811
    """p07 with runs that say all of this, in every place, and some by chance."""
    import mlflow

    client, rng = mlflow.MlflowClient(), random.Random(1)
    with database.open_session() as session:
        join(session, "p07", until="practice")
    said = [{"participant.time_hours": hours} for hours in HOURS if "\x00" not in hours]
    said += [{"method": name, "family": name, "mlflow.runName": name} for name in NAMES if name]
    said += [
        {rng.choice(["participant.time_hours", "stage", "family", "warning"]): rng.choice(NAMES[1:] + HOURS[:9]) or "x"}
        for _ in range(20)
    ]
    for tags in said:
        run = record("p07", **{"mlflow.note.content": "x"}, **tags) if "family" not in tags else make(client, tags)
        for number, name in enumerate(("accuracy", "accuracy_before", "accuracy_kept", "compression_ratio", "speedup")):
            client.log_metric(run, name, METRICS[(number + len(tags)) % len(METRICS)])
    for start, end in ((-5, 10**17), (10**17, 5), (1, 2), (10**14, 10**15)):
        run = client.create_run("0", start, {"participant": "p07", "family": "prune"}).info.run_id
        client.set_terminated(run, "FINISHED", end)


def make(client, tags):
    run = client.create_run("0", 10**12, {"participant": "p07"} | tags)
    client.set_terminated(run.info.run_id, "FINISHED", 10**12 + 3_600_000)
    return run.info.run_id


def test_pages_sheet_and_analysis_stand(hostile, real_pictures):
    with served(LocalAccess("p07")) as address:
        ids = [run.id for run in participant_runs.load_runs("p07")]
        assert len(ids) > 40
        for path in ("/", "/time", "/runs", *(f"/runs/{id}" for id in ids[::5])):
            answer = requests.get(f"{address}{path}", timeout=60)
            assert answer.status_code == 200, path
            assert "nan" not in answer.text.replace("finance", "")
    with served(LocalAccess()) as address:
        for path in ("/people", "/analysis"):
            assert requests.get(f"{address}{path}", timeout=60).status_code == 200, path
    counted = lines("p07")
    assert all(0 <= line.run_hours <= participant_runs.MAX_HOURS for line in counted.values())
    assert timesheet.format_table(list(counted.values()))
    with database.open_session() as session:
        tables = analysis.build_tables(session)
    assert json.dumps(tables, allow_nan=False)
    assert all(abs(row["score"]) <= analysis.MAX_SCORE for row in tables["learning"])
    for run in participant_runs.load_runs("p07"):
        assert bundle.run_record(run)
    run = Listener()
    StudyObserver().ended(run, "p07", "magnitude")
    assert float(run.tags["participant.method_hours"]) < participant_runs.MAX_HOURS
    assert run.warnings == []


def test_a_method_of_which_there_are_thousands_is_drawn_as_the_most_frequent(real_pictures):
    table = [{"method": f"method {n}" * 20, "runs": n} for n in range(3000)]
    assert data_uri(figures.plot_run_counts(table)).startswith("data:image/png")


@pytest.mark.parametrize("id", ["p07\n", "p07\nok: everything fine", "p07\x1b[2J", "P07", "p" * 41, "../p07", ""])
def test_nobody_is_invited_by_a_name_that_is_more_than_a_name(session, id):
    with pytest.raises(Exception, match="cannot be an id"):
        participants.invite(session, id, "student")


def test_nobodys_login_is_anothers_id(session):
    join(session, "p01", login="ada")
    for id, login in (("p02", "p01"), ("ada", ""), ("p02", "ada"), ("p02", "x" * 256), ("p02", "a\nb")):
        with pytest.raises(Exception, match=r"taken|takes one line"):
            participants.invite(session, id, "student", login=login)
