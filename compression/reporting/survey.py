"""One page over all finished runs of a task: Pareto front, best of every method, claims, recommendations."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression import params, tracking
from compression.errors import UserError
from compression.files import to_csv
from compression.params import param
from compression.reporting import report
from compression.reporting.claims import check_claims
from compression.reporting.figures.runs import quality_by_family
from compression.reporting.pareto import dominates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tracking import RunRecord

COSTS = ("size_mb", "latency_ms")  # what the Pareto front trades quality against
# The quality that a recommended model may lack against the best one within the budget: of a share the difference, of a
# metric that should fall the part of it.
NEAR_BEST = 0.01
MINIMIZED = "minimized"  # the tag of runs on a task of whose metric less is better; its value is the metric


@dataclass(frozen=True)
class Budget:
    """The limits that a recommended model must keep to."""

    size_mb: float | None = param(None, "largest file to recommend, in MB", interval="(0, inf)")
    latency_ms: float | None = param(None, "longest latency to recommend, in ms", interval="(0, inf)")
    kept: float | None = param(None, "least share of the quality to keep", interval="[0, inf)")

    def __post_init__(self) -> None:
        params.check(self)

    def allows(self, run: RunRecord, metric: str) -> bool:
        """Whether the model of `run`, whose quality is `metric`, keeps to the limits."""
        limits = {cost: getattr(self, cost) for cost in COSTS}
        is_cheap = all(run.metrics[cost] <= limit for cost, limit in limits.items() if limit is not None)
        return is_cheap and (self.kept is None or run.metrics[f"{metric}_kept"] >= self.kept)

    def __str__(self) -> str:
        texts = {
            "size_mb": "at most {:g} MB",
            "latency_ms": "at most {:g} ms",
            "kept": "at least {:.1%} of the quality",
        }
        limits = {name: value for name, value in params.values(self).items() if value is not None}
        return ", ".join(texts[name].format(value) for name, value in limits.items()) or "no limit"


def write_survey(task: str, budget: Budget, output: str) -> tuple[Path, str]:
    """Write the page to `output`, and its rows as a CSV file next to it; return the page, and a table for a terminal.

    Raises UserError if no finished run compressed a model on `task`.
    """
    runs, is_limited = comparable_runs(tracking.finished_runs(task), task)
    metric = quality_metric(runs)
    front = sorted(pareto_front(runs, metric), key=lambda run: -gain(run, metric))
    columns = ["method", "model", metric, f"{metric}_kept", "compression_ratio", "speedup", *COSTS, "seconds", "hours"]
    points = figure_points(runs, front)
    page = report.render_page(
        "survey.html",
        task=task,
        metric=metric,
        is_limited=is_limited,
        columns=columns,
        rows=[run_row(run) for group in fronts_by_method(runs, metric).values() for run in group],
        times=times_by_method(runs),
        claims=check_claims(runs, metric),
        front=[run_row(run) for run in front],
        budget=budget,
        recommended=[run_row(run) for run in recommend(runs, budget, metric)],
        figures={cost: report.data_uri(quality_by_family(points, metric, cost)) for cost in COSTS},
    )
    path = Path(output)
    path.write_text(page, encoding="utf-8")
    path.with_suffix(".csv").write_text(to_csv(map(run_row, runs), ["run", "name", *columns]), encoding="utf-8")
    return path, report.text_table([run_row(run) for run in front], ["run", *columns])


def comparable_runs(runs: Sequence[RunRecord], task: str) -> tuple[list[RunRecord], bool]:
    """The runs that compared two models, and whether they used only a part of the data of `task`.

    Runs on a part of the data count only where there are no others. Raises UserError if no run compared two models.
    """
    compared = [run for run in runs if "compression_ratio" in run.metrics]
    on_all_data = [run for run in compared if "limited" not in run.tags]
    if not compared:
        more = " The runs on a file's text are those on text/NAME, without the file's suffix." if task == "text" else ""
        raise UserError(f"There is no finished run on {task} that compressed anything.{more}")
    return on_all_data or compared, not on_all_data


def quality_metric(runs: Sequence[RunRecord]) -> str:
    """The name of the quality metric of the runs' task: the one with a `<name>_kept`."""
    names = [name.removesuffix("_kept") for name in runs[0].metrics if name.endswith("_kept")]
    return names[0]


def is_minimized(run: RunRecord, metric: str) -> bool:
    """Whether less of `metric`, the quality of a run, is better."""
    return run.tags.get(MINIMIZED) == metric


def gain(run: RunRecord, metric: str) -> float:
    """The quality of a run so that more of it is better."""
    return -run.metrics[metric] if is_minimized(run, metric) else run.metrics[metric]


def pareto_front(runs: Sequence[RunRecord], metric: str) -> list[RunRecord]:
    """The runs that no other dominates in quality, size and latency."""
    maximize = (True, *(False for _ in COSTS))
    values = {run.id: [gain(run, metric), *(run.metrics[name] for name in COSTS)] for run in runs}
    return [run for run in runs if not any(dominates(other, values[run.id], maximize) for other in values.values())]


def fronts_by_method(runs: Sequence[RunRecord], metric: str) -> dict[str, list[RunRecord]]:
    """The Pareto front of each method's runs by itself, the best quality first."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.tags["method"]].append(run)
    return {
        method: sorted(pareto_front(group, metric), key=lambda run: -gain(run, metric))
        for method, group in sorted(groups.items())
    }


def times_by_method(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """For each method the number of runs, their median seconds, and the hours that people spent on them."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.tags["method"]].append(run_row(run))
    return [
        {
            "method": method,
            "runs": len(rows),
            "seconds": statistics.median(row["seconds"] for row in rows),
            "hours": sum(row["hours"] or 0.0 for row in rows),
        }
        for method, rows in sorted(groups.items())
    ]


def recommend(runs: Sequence[RunRecord], budget: Budget, metric: str) -> list[RunRecord]:
    """Within the budget the best run, and the smallest and the fastest whose quality is within NEAR_BEST of it."""
    allowed = [run for run in runs if budget.allows(run, metric)]
    if not allowed:
        return []
    best = max(allowed, key=lambda run: gain(run, metric))
    least = gain(best, metric) - NEAR_BEST * (best.metrics[metric] if is_minimized(best, metric) else 1.0)
    near = [run for run in allowed if gain(run, metric) >= least]
    cheapest = [min(near, key=lambda run: run.metrics[cost]) for cost in COSTS]
    return list({run.id: run for run in [best, *cheapest]}.values())


def run_row(run: RunRecord) -> dict[str, Any]:
    """A run as a row of the tables: what identifies it, all metrics, and the hours that its participant spent."""
    about = {"run": run.id, "name": run.name, "method": run.tags["method"], "model": run.params.get("model", "")}
    hours = run.tags.get("participant.time_hours") if "participant" in run.tags else None
    return about | run.metrics | {"hours": float(hours) if hours else None}


def figure_points(runs: Sequence[RunRecord], front: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The points of `quality_by_family`: metrics, family, method, and whether the run is on the front."""
    on_front = {run.id for run in front}
    return [
        run.metrics | {"family": run.tags["family"], "label": run.tags["method"], "front": run.id in on_front}
        for run in runs
    ]
