"""Experiments with faults are counted; their table closes the output of `make test-faults`."""

from __future__ import annotations

import pytest

OUTCOMES = ("lost", "stuck", "leaked")
TABLE = pytest.StashKey[list[tuple[str, int, dict[str, int]]]]()


@pytest.fixture
def tally(request):
    """`tally(name, tried=20, lost=0)`: note how many of the trials of an experiment went wrong, and require none.

    `lost`: data or metrics lost, doubled or wrong. `stuck`: runs RUNNING for ever, stores nobody can open, requests
    without an answer. `leaked`: something was read, run or written that should not have been.
    """

    def note(name: str, *, tried: int, **counts: int) -> None:
        assert counts, "an experiment counts at least one outcome"
        assert set(counts) <= set(OUTCOMES), f"outcomes are {', '.join(OUTCOMES)}"
        request.config.stash.setdefault(TABLE, []).append((name, tried, counts))
        assert tried > 0
        assert not any(counts.values()), f"{name}: {counts} of {tried}"

    return note


def pytest_terminal_summary(terminalreporter, config):
    """Print the table: experiment, trials, and how many of them were lost, stuck or leaked (`-`: not looked at)."""
    if rows := config.stash.get(TABLE, []):
        width = max(len(name) for name, *_ in rows)
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'':{width}}  tried  " + "  ".join(f"{each:>6}" for each in OUTCOMES))
        for name, tried, counts in rows:
            cells = "  ".join(f"{counts.get(each, '-'):>6}" for each in OUTCOMES)
            terminalreporter.write_line(f"{name:{width}}  {tried:>5}  {cells}")
