"""The report across runs: front, claims and advice by hand; the page from a real store."""

import csv
import re

import pytest

from compression import tracking
from compression.errors import UserError
from compression.reporting import survey
from compression.reporting.claims import CLAIMS, check_claims
from compression.reporting.survey import (
    Budget,
    comparable_runs,
    fronts_by_method,
    pareto_front,
    recommend,
    times_by_method,
)
from compression.tracking import RunRecord


def run(name, method="static", family="quantize", params=None, tags=None, **figures):
    """A run that made a model of 80% accuracy, 4 MB and 10 ms into what `figures` say."""
    usual = {"accuracy": 0.8, "size_mb": 1.0, "latency_ms": 5.0, "seconds": 10.0, "size_mb_compressed": 1.0}
    usual |= {"macs_ratio": 1.0, "size_mb_compressed_before": 4.0} | figures
    usual |= {"accuracy_kept": usual["accuracy"] / 0.8, "compression_ratio": 4.0 / usual["size_mb"]}
    usual |= {"speedup": 10.0 / usual["latency_ms"]}
    said = {"method": method, "family": family, "task": "digits", "stage": "compress"}
    return RunRecord(name, name, "FINISHED", params or {}, said | (tags or {}), usual)


def test_the_front_holds_what_no_run_beats_in_all_three():
    good = run("good", accuracy=0.82, size_mb=2.0, latency_ms=5.0)
    small = run("small", accuracy=0.7, size_mb=0.5, latency_ms=6.0)
    fast = run("fast", accuracy=0.7, size_mb=2.0, latency_ms=1.0)
    worse = run("worse", accuracy=0.7, size_mb=2.1, latency_ms=5.0)
    assert pareto_front([good, small, fast, worse], "accuracy") == [good, small, fast]
    assert fronts_by_method([good, worse], "accuracy") == {"static": [good]}


def test_of_a_metric_that_should_fall_the_lowest_is_best():
    minimized = {"minimized": "perplexity"}
    good = run("good", tags=minimized, perplexity=20.0, size_mb=2.0)
    near = run("near", tags=minimized, perplexity=20.1, size_mb=1.0)
    bad = run("bad", tags=minimized, perplexity=90.0, size_mb=2.0)
    assert pareto_front([good, near, bad], "perplexity") == [good, near]
    assert fronts_by_method([near, bad, good], "perplexity") == {"static": [good, near]}
    assert recommend([near, bad, good], Budget(), "perplexity") == [good, near]
    far = run("far", tags=minimized, perplexity=20.3, size_mb=0.5)
    assert recommend([far, good], Budget(), "perplexity") == [good]


def test_a_claim_holds_where_one_run_meets_all_of_it():
    int8 = run("int8", params={"bits": "8"}, accuracy=0.79, size_mb=0.9, latency_ms=4.0)
    [found, *_] = check_claims([int8], "accuracy")
    assert found.claim.kind == "int8 quantization"
    assert found.is_met
    assert found.parts["smaller"] == ("4×", "4.44×", True)
    assert found.parts["faster"] == ("2×", "2.50×", True)


def test_a_claim_that_two_runs_meet_by_halves_does_not_hold():
    small = run("small", params={"bits": "8"}, accuracy=0.5, size_mb=0.5, latency_ms=9.0)
    fast = run("fast", params={"bits": "8"}, accuracy=0.8, size_mb=2.0, latency_ms=1.0)
    [found, *_] = check_claims([small, fast], "accuracy")
    assert not found.is_met
    assert found.run.id == "fast"
    assert found.parts["smaller"][2] is False


def test_a_kind_that_nobody_tried_says_so():
    found = check_claims([run("int8", params={"bits": "8"})], "accuracy")
    assert [f.run is None for f in found] == [False, *[True] * (len(CLAIMS) - 1)]
    assert not any(f.is_met for f in found[1:])


def test_pruning_counts_as_structured_where_it_takes_macs_and_by_the_zipped_file_else():
    channels = run("channels", "structured", "prune", macs_ratio=0.5, size_mb=2.0, latency_ms=6.0)
    zeros = run("zeros", "magnitude", "prune", size_mb=4.0, size_mb_compressed=0.5)
    kinds = {f.claim.kind: f for f in check_claims([channels, zeros], "accuracy")}
    assert kinds["structured pruning"].run.id == "channels"
    assert kinds["structured pruning"].is_met
    assert kinds["unstructured pruning"].run.id == "zeros"
    assert kinds["unstructured pruning"].parts["smaller"][1] == "8.00×"


def test_advice_keeps_to_the_budget_and_names_its_runs():
    best = run("best", accuracy=0.8, size_mb=3.0, latency_ms=9.0)
    near = run("near", accuracy=0.795, size_mb=1.0, latency_ms=8.0)
    fast = run("fast", accuracy=0.793, size_mb=2.0, latency_ms=1.0)
    poor = run("poor", accuracy=0.4, size_mb=0.1, latency_ms=0.1)
    runs = [best, near, fast, poor]
    assert [r.id for r in recommend(runs, Budget(), "accuracy")] == ["best", "near", "fast"]
    assert [r.id for r in recommend(runs, Budget(size_mb=1.5), "accuracy")] == ["near"]
    assert [r.id for r in recommend(runs, Budget(latency_ms=2.0, kept=0.9), "accuracy")] == ["fast"]
    assert recommend(runs, Budget(size_mb=0.01), "accuracy") == []
    assert str(Budget(size_mb=1.5, kept=0.9)) == "at most 1.5 MB, at least 90.0% of the quality"


def test_time_is_the_computers_and_the_peoples():
    alone = run("alone", seconds=10.0, tags={"participant.time_hours": "5"})
    person = run("person", seconds=30.0, tags={"participant": "p07", "participant.time_hours": "0.5"})
    assert times_by_method([alone, person]) == [{"method": "static", "runs": 2, "seconds": 20.0, "hours": 0.5}]


def test_quick_looks_are_left_out_unless_there_is_nothing_else():
    whole, part = run("whole"), run("part", tags={"limited": "100"})
    assert comparable_runs([whole, part], "digits") == ([whole], False)
    assert comparable_runs([part], "digits") == ([part], True)
    with pytest.raises(UserError, match="no finished run on digits that compressed anything"):
        comparable_runs([], "digits")


@pytest.fixture
def stored_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COMPRESSION_HOME", str(tmp_path / "home"))
    for one in (run("int8", params={"bits": "8"}, size_mb=1.2), run("zeros", "magnitude", "prune", size_mb=4.0)):
        with tracking.start_run(one.name, one.tags) as made:
            made.params({"model": "resnet20"} | one.params)
            made.metrics(one.metrics)
    with tracking.start_run("trial", run("trial").tags | {"stage": "trial"}) as made:
        made.metrics(run("trial", accuracy=0.99).metrics)


def test_the_page_and_the_csv_hold_every_finished_run_of_the_task(stored_runs, tmp_path):
    page, table = survey.write_survey("digits", Budget(size_mb=2.0), str(tmp_path / "all.html"))
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    for part in (
        "The Pareto front across methods",
        "at most 2 MB",
        "not met here; nearest: int8",
        "no run",
        "magnitude",
    ):
        assert part in text
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert {row["name"] for row in rows} == {"int8", "zeros"}  # what a trial saw of the validation split is no result
    assert rows[0]["compression_ratio"]
    assert "static" in table


def test_a_task_without_runs_is_refused(stored_runs, tmp_path):
    with pytest.raises(UserError, match="no finished run on cifar10"):
        survey.write_survey("cifar10", Budget(), str(tmp_path / "all.html"))
    assert not (tmp_path / "all.html").exists()
