"""The report of a run from its stored content, and how its numbers are shown."""

from pathlib import Path

import pytest

from compression.reporting.content import read_content, upgrade_content
from compression.reporting.report import comparison_rows, format_number, merge_before_after, render_report

STORED_BY_0_1 = Path(__file__).parent / "stored_by_0_1"


def test_the_keys_of_version_0_1_become_todays():
    content = read_content(STORED_BY_0_1)
    assert content["step_labels"] == ["structured", "static"]
    assert [step["label"] for step in content["after_each_step"]] == ["before", "structured", "static"]
    assert not {"stairs", "climbed"} & set(content)


def test_content_of_today_stays_as_it_is():
    content = {"step_labels": ["static"], "after_each_step": [], "metric": "accuracy"}
    assert upgrade_content(content) == content


def test_a_run_stored_by_version_0_1_is_reported_step_by_step():
    page = render_report(read_content(STORED_BY_0_1), STORED_BY_0_1)
    assert "Step by step" in page
    assert "<td>structured</td>" in page
    assert "Conv2d → QuantConv2d" in page


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (None, "params", "–"),
        (0.8765, "accuracy", "87.65%"),
        (0.5, "pearson_before", "50.00%"),
        (1.02, "accuracy_kept", "102.00%"),
        (9999.0, "params", "9999"),
        (12_345.0, "params", "12.35 k"),
        (2_500_000.0, "macs", "2.5 M"),
        (3e9, "macs", "3 G"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, name, text):
    assert format_number(value, name) == text


@pytest.mark.parametrize(
    ("name", "before", "after", "change", "good"),
    [
        ("accuracy", 0.80, 0.81, "+1.00 points", True),
        ("accuracy", 0.80, 0.7996, "-0.04 points", None),  # less than noise
        ("size_mb", 4.0, 1.0, "× 0.25", True),
        ("latency_ms", 10.0, 11.0, "× 1.1", False),
        ("latency_ms", 10.0, 10.1, "× 1.01", None),
        ("sparsity", 0.0, 0.5, "+50.00 points", None),  # neither good nor bad
        ("macs", 0.0, 5.0, "", None),  # no ratio to nothing
    ],
)
def test_a_change_is_called_better_or_worse_where_it_is_more_than_noise(name, before, after, change, good):
    metrics = {"accuracy": 0.5, name: after, f"{name}_before": before}
    row = comparison_rows({"metric": "accuracy", "metrics": metrics})[0 if name == "accuracy" else 1]
    assert (row["change"], row["good"]) == (change, good)


def test_a_layer_shows_both_values_where_they_differ():
    row = {"layer": "fc", "bits": "8", "bits_before": "32", "shape": "3x4", "shape_before": "3x4", "type": "Linear"}
    assert merge_before_after(row) == {"layer": "fc", "bits": "32 → 8", "shape": "3x4", "type": "Linear"}
