"""Chains of methods on the digits: every combination that people use, measured step by step."""

import functools
import itertools
from pathlib import Path

import mlflow
import pytest

from compression import methods
from compression.errors import UserError
from compression.models import storage
from compression.runs import chain
from compression.runs.settings import Settings
from tests.runs.test_runs import children, fetched

CHAINS = {
    "prune and quantize": "structured:sparsity=0.5+finetune:epochs=1+static:calibration_samples=64",
    "distil and quantize": "response:epochs=1+static:calibration_samples=64",
    "prune and distil": "structured:sparsity=0.5+progressive:epochs=1",
    "distil, prune and quantize": "response:epochs=1+magnitude:sparsity=0.5+static:calibration_samples=64",
    "decompose and quantize": "svd+static:calibration_samples=64",
    "deep compression": "magnitude:sparsity=0.8+cluster:epochs=1",
}


def settings(**changes):
    return Settings(**{"task": "digits", "limit": 200, "threads": 1, "model": "digits_cnn"} | changes)


@pytest.fixture(scope="module")
def run_chain(store):
    """The content and the run of a chain by its name, made once."""

    @functools.cache
    def of(name):
        content = chain.compress(settings(), methods.parse(CHAINS[name]))
        return content, mlflow.get_run(content["run"])

    return of


@pytest.fixture(params=CHAINS)
def compressed(request, run_chain):
    return run_chain(request.param)


def steps_of(run):
    found = [r for r in children(run) if r.data.tags["stage"] == "step"]
    return sorted(found, key=lambda r: r.data.tags["mlflow.runName"])


def test_every_step_is_a_child_run_with_its_own_figures(compressed):
    content, run = compressed
    steps = content["steps"].split("+")
    found = steps_of(run)
    assert [r.data.tags["method"] for r in found] == [step.partition(":")[0] for step in steps]
    for one in found:
        assert one.info.status == "FINISHED"
        assert {"accuracy", "accuracy_before", "size_mb", "latency_ms", "speedup"} <= set(one.data.metrics)
        assert one.data.tags["limited"] == "200"
    assert found[-1].data.metrics["size_mb"] == run.data.metrics["size_mb"] < run.data.metrics["size_mb_before"]
    assert len({one.data.metrics["size_mb_before"] for one in [*found, run]}) == 1


def test_the_report_shows_the_model_after_each_step(compressed):
    content, run = compressed
    labels = [step["label"] for step in content["after_each_step"]]
    assert labels == ["before", *(part.partition(":")[0] for part in content["steps"].split("+"))]
    page = fetched(run, "report.html").read_text()
    assert "Step by step" in page
    for label in labels:
        assert f"<td>{label}</td>" in page


def test_each_stair_reloads(compressed):
    _, run = compressed
    sizes = [sum(p.numel() for p in storage.load(fetched(r, "model")).parameters()) for r in steps_of(run)]
    assert len(sizes) > 1
    again = [r.data.metrics["params"] for r in steps_of(run)]
    assert all(a >= b for a, b in itertools.pairwise([run.data.metrics["params_before"], *again]))


def test_deep_compression_leaves_its_coded_file_and_the_papers_ratio(run_chain):
    _, run = run_chain("deep compression")
    coded = fetched(run, "model.huffman")
    assert run.data.metrics["huffman_mb"] == Path(coded).stat().st_size / 1e6
    assert run.data.metrics["huffman_ratio"] > 8


def test_the_parts_of_a_step_hang_below_the_step(run_chain):
    _, run = run_chain("prune and distil")
    assert {r.data.tags["stage"] for r in children(run)} <= {"step", "train"}
    first, second = steps_of(run)
    assert not children(first)
    names = {"assistant-1", "student"}
    assert {r.data.tags["mlflow.runName"] for r in children(second)} == names
    assert {r.data.tags["stage"] for r in children(second)} == {"part"}


def test_a_chain_that_fails_keeps_the_steps_it_finished(store):
    with pytest.raises(UserError, match="no model 'nothing'"):
        chain.compress(settings(run_name="falls"), methods.parse("magnitude+response:teacher=nothing"))
    [run] = mlflow.search_runs(
        search_all_experiments=True, filter_string="attributes.run_name = 'falls'", output_format="list"
    )
    assert run.info.status == "FAILED"
    first, second = steps_of(run)
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert first.data.metrics["sparsity"] > 0.4


def test_a_step_for_another_kind_of_model_is_refused_before_any_work(store):
    with pytest.raises(UserError, match="l0 works on transformers alone, and digits has images"):
        chain.compress(settings(run_name="refused"), methods.parse("magnitude+l0"))
    [run] = mlflow.search_runs(
        search_all_experiments=True, filter_string="attributes.run_name = 'refused'", output_format="list"
    )
    assert not children(run)
