"""The configuration of tuning: objectives, constraints, limits, and what is refused."""

import math
from types import SimpleNamespace

import pytest

from compression.errors import UserError
from compression.tuning.config import TuningConfig, objective_directions, parse_constraints


def quality(metric, higher_is_better=True, predicts_tokens=False):
    return SimpleNamespace(metric=metric, higher_is_better=higher_is_better, predicts_tokens=predicts_tokens)


ACCURACY = quality("accuracy")


def test_less_of_a_falling_metric_is_better_and_more_of_what_is_kept_of_it():
    config = TuningConfig(objectives="perplexity,perplexity_kept,tokens_per_second")
    found = objective_directions(config, quality("perplexity", False, True))
    assert found == {"perplexity": False, "perplexity_kept": True, "tokens_per_second": True}


def test_without_objectives_the_metric_and_the_size_are_optimised():
    assert objective_directions(TuningConfig(), ACCURACY) == {"accuracy": True, "size_mb": False}


def test_the_direction_of_a_metric_is_known():
    found = objective_directions(
        TuningConfig(objectives="matthews_correlation, latency_ms,speedup,macs"), quality("matthews_correlation")
    )
    assert found == {"matthews_correlation": True, "latency_ms": False, "speedup": True, "macs": False}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TuningConfig(objectives="acuracy"), "no metric 'acuracy'; the metrics are accuracy, accuracy_kept"),
        (TuningConfig(objectives="decode_ms"), "no metric 'decode_ms'"),
        (TuningConfig(objectives="size_mb,size_mb"), "names a metric twice"),
        (
            TuningConfig(pruner="median"),
            "pruner=median stops trials by their epochs: it takes objectives=accuracy alone",
        ),
        (TuningConfig(pruner="hyperband", objectives="size_mb"), "objectives=accuracy alone"),
    ],
)
def test_invalid_objectives_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        objective_directions(config, ACCURACY)


def test_a_constraint_is_met_at_its_ends_and_counted_beyond_them():
    low, high = parse_constraints(TuningConfig(constraints="accuracy_kept=0.98..,size_mb=..2"), ACCURACY)
    assert low.excess({"accuracy_kept": 0.98}) <= 0
    assert low.excess({"accuracy_kept": 0.97}) == pytest.approx(0.01)
    assert high.excess({"size_mb": 1.5}) == -0.5
    assert high.excess({"size_mb": 2.5}) == 0.5


@pytest.mark.parametrize("text", ["size_mb=2", "size_mb=..", "size_mb=3..2", "size_mb=a..", "size=..2"])
def test_an_invalid_constraint_is_refused(text):
    with pytest.raises(UserError, match="constraint|no metric"):
        parse_constraints(TuningConfig(constraints=text), ACCURACY)


@pytest.mark.parametrize("changes", [{"trials": 0}, {"sampler": "best"}, {"timeout": -1.0}, {"heartbeat": 0}])
def test_a_configuration_out_of_range_is_refused(changes):
    with pytest.raises(UserError):
        TuningConfig(**changes)


ENDS = ["nan", "inf", "-inf", "NaN", "1e999", "2..3", " "]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", ["{}..2", "0.1..{}", "..{}", "{}.."])
def test_a_constraint_takes_finite_numbers_alone(form, end):
    if end == " " and form in ("{}..2", "0.1..{}"):
        return  # an end that is left out
    with pytest.raises(UserError, match=r"is written name=low..high, with one end or both"):
        TuningConfig(constraints={"size_mb": form.format(end)})


def test_a_metric_that_is_missing_or_no_number_is_no_kept_constraint():
    [kept] = parse_constraints(TuningConfig(constraints="accuracy_kept=0.98.."), ACCURACY)
    for metrics in ({}, {"accuracy_kept": math.nan}):
        with pytest.raises(UserError, match="accuracy_kept is no number here"):
            kept.excess(metrics)
