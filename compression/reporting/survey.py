"""One page over all finished runs of a task: the best of every method, the front, the claims, what to take."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression import params, tracking
from compression.errors import UserError
from compression.params import param
from compression.reporting import report
from compression.reporting.claims import findings
from compression.reporting.figures.runs import quality_by_family
from compression.reporting.pareto import dominates
from compression.tracking import RunRecord

COSTS = ("size_mb", "latency_ms")


@dataclass(frozen=True)
class Budget:
    """What a recommended model must keep to."""

    size_mb: float | None = param(None, "largest file to recommend, in MB", interval="(0, inf)")
    latency_ms: float | None = param(None, "longest latency to recommend, in ms", interval="(0, inf)")
    kept: float | None = param(None, "least share of the quality to keep", interval="[0, inf)")

    def __post_init__(self) -> None:
        params.check(self)

    def allows(self, run: RunRecord, metric: str) -> bool:
        figures = run.metrics
        within = all(figures[cost] <= limit for cost in COSTS if (limit := getattr(self, cost)) is not None)
        return within and (self.kept is None or figures[f"{metric}_kept"] >= self.kept)

    def __str__(self) -> str:
        said = {"size_mb": "at most {:g} MB", "latency_ms": "at most {:g} ms", "kept": "at least {:.1%} of the quality"}
        given = {name: value for name, value in params.values(self).items() if value is not None}
        return ", ".join(said[name].format(value) for name, value in given.items()) or "no limit"


def write(task: str, budget: Budget, output: str) -> tuple[Path, str]:
    """Write the page to `output` and its rows beside it as CSV; the page, and the table for a terminal."""
    runs, limited = comparable(tracking.finished_runs(task), task)
    metric = metric_of(runs)
    best = sorted(leading(runs, metric), key=lambda run: -run.metrics[metric])
    columns = ["method", "model", metric, f"{metric}_kept", "compression_ratio", "speedup", *COSTS, "seconds", "hours"]
    page = report.page(
        "survey.html",
        task=task,
        metric=metric,
        limited=limited,
        columns=columns,
        rows=[row(run) for group in by_method(runs, metric).values() for run in group],
        times=times(runs),
        findings=findings(runs, metric),
        front=[row(run) for run in best],
        budget=budget,
        advice=[row(run) for run in recommended(runs, budget, metric)],
        pictures={cost: report.data_uri(quality_by_family(points(runs, best), metric, cost)) for cost in COSTS},
    )
    path = Path(output)
    path.write_text(page)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["run", "name", *columns], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row(run) for run in runs)
    return path, report.columns([row(run) for run in best], ["run", *columns])


def comparable(runs: Sequence[RunRecord], task: str) -> tuple[list[RunRecord], bool]:
    """The runs that compared two models on all data; those on a part of it, where there are no others."""
    compared = [run for run in runs if "compression_ratio" in run.metrics]
    whole = [run for run in compared if "limited" not in run.tags]
    if not compared:
        raise UserError(f"There is no finished run on {task} that compressed anything.")
    return whole or compared, not whole


def metric_of(runs: Sequence[RunRecord]) -> str:
    """The quality that all the runs report: what they say how much of is kept."""
    names = [name.removesuffix("_kept") for name in runs[0].metrics if name.endswith("_kept")]
    return names[0]


def leading(runs: Sequence[RunRecord], metric: str) -> list[RunRecord]:
    """The runs that no other beats in quality, size and latency at once."""
    names, more = (metric, *COSTS), (True, *(False for _ in COSTS))
    figures = {run.id: [run.metrics[name] for name in names] for run in runs}
    return [run for run in runs if not any(dominates(other, figures[run.id], more) for other in figures.values())]


def by_method(runs: Sequence[RunRecord], metric: str) -> dict[str, list[RunRecord]]:
    """Method -> its own leading runs, the best first."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.tags["method"]].append(run)
    return {m: sorted(leading(group, metric), key=lambda r: -r.metrics[metric]) for m, group in sorted(groups.items())}


def times(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Runs, computer's seconds and people's hours of every method."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.tags["method"]].append(row(run))
    return [
        {
            "method": method,
            "runs": len(group),
            "seconds": statistics.median(one["seconds"] for one in group),
            "hours": sum(one["hours"] or 0.0 for one in group),
        }
        for method, group in sorted(groups.items())
    ]


def recommended(runs: Sequence[RunRecord], budget: Budget, metric: str) -> list[RunRecord]:
    """Within the budget: the best, and the smallest and the fastest of what comes within a point of it."""
    within = [run for run in runs if budget.allows(run, metric)]
    if not within:
        return []
    best = max(within, key=lambda run: run.metrics[metric])
    near = [run for run in within if run.metrics[metric] >= best.metrics[metric] - 0.01]
    cheapest = [min(near, key=lambda run: run.metrics[cost]) for cost in COSTS]
    return list({run.id: run for run in [best, *cheapest]}.values())


def row(run: RunRecord) -> dict[str, Any]:
    """A run as the tables show it."""
    said = {"run": run.id, "name": run.name, "method": run.tags["method"], "model": run.params.get("model", "")}
    hours = run.tags.get("participant.time_hours") if "participant" in run.tags else None
    return said | run.metrics | {"hours": float(hours) if hours else None}


def points(runs: Sequence[RunRecord], best: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What the pictures draw: figures, family, and the name of those on the front."""
    front = {run.id for run in best}
    return [
        run.metrics | {"family": run.tags["family"], "label": run.tags["method"], "front": run.id in front}
        for run in runs
    ]
