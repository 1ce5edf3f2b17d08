"""The report of stored runs: one run's own page made again, or a page that sets several side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression import tracking
from compression.errors import UserError
from compression.reporting import report
from compression.reporting.figures.runs import quality_against_cost

PARTS = ("comparison.json", "layers.csv", "figures")


def write(runs: Sequence[str], output: str) -> Path:
    """Write the page for `runs` to the file `output`; UserError for a run that left nothing to report."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [fetched(run, Path(scratch) / str(i)) for i, run in enumerate(runs)]
        contents = [json.loads((folder / PARTS[0]).read_text()) for folder in folders]
        page = report.render(contents[0], folders[0]) if len(runs) == 1 else side_by_side(contents)
    Path(output).write_text(page)
    return Path(output)


def keep(page: Path, runs: Sequence[str]) -> None:
    """Keep the page in the run that `mlflow run -e report` made."""
    with tracking.start_run(name="report", tags={"stage": "report"}) as run:
        run.params({"run": " ".join(runs)})
        run.artifact(page)


def fetched(run: str, folder: Path) -> Path:
    """The parts of the report of `run`, in `folder`."""
    status = tracking.get_run(run).status
    try:
        for part in PARTS:
            tracking.download(f"runs:/{run}/{part}", folder)
    except UserError as error:
        raise UserError(f"The run {run} ({status}) has no report to show: it did not come to its end.") from error
    return folder


def side_by_side(contents: list[dict[str, Any]]) -> str:
    """A page with a row per run and their quality against size; UserError where the runs' metrics differ."""
    metrics = {content["metric"] for content in contents}
    if len(metrics) > 1:
        raise UserError(f"The runs report different metrics ({', '.join(sorted(metrics))}); compare runs of one task.")
    [metric] = metrics
    first = contents[0]["metrics"]
    baseline = {"label": "before", "size_mb": first.get("size_mb_before"), metric: first.get(f"{metric}_before")}
    points = [content["metrics"] | {"label": content["title"]} for content in contents]
    picture = quality_against_cost([baseline, *points] if baseline["size_mb"] else points, metric, "size_mb")
    ratios = [f"{metric}_kept", "compression_ratio", "speedup", "macs_ratio"]
    columns = [metric, *ratios, "size_mb", "latency_ms", "seconds"]
    return report.page("comparison.html", contents=contents, columns=columns, picture=report.data_uri(picture))
