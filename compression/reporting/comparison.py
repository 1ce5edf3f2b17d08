"""Pages on stored runs: the report of one run rendered again, or several runs compared."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compression import tracking
from compression.errors import UserError
from compression.reporting import report
from compression.reporting.content import COMPARISON_FILE, read_content
from compression.reporting.figures.runs import quality_against_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.reporting.content import Content

ARTIFACTS = (COMPARISON_FILE, "layers.csv", "figures")  # of a run, that its report is made of


def write_page(runs: Sequence[str], output: str) -> Path:
    """Write the page for the runs with these ids to the file `output`; return its path.

    Raises UserError for a run that left nothing to report, and for runs whose metrics differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = [download_artifacts(run, Path(scratch) / str(i)) for i, run in enumerate(runs)]
        contents = [read_content(folder) for folder in folders]
        page = report.render_report(contents[0], folders[0]) if len(runs) == 1 else render_comparison(contents)
    Path(output).write_text(page, encoding="utf-8")
    return Path(output)


def log_page(page: Path, runs: Sequence[str]) -> None:
    """Log the page to the run that `mlflow run -e report` made."""
    with tracking.start_run(name="report", tags={"stage": "report"}) as run:
        run.params({"run": " ".join(runs)})
        run.artifact(page)


def download_artifacts(run: str, folder: Path) -> Path:
    """Download what the report of `run` is made of into `folder`, and return it.

    Raises UserError if the run did not finish.
    """
    status = tracking.get_run(run).status
    try:
        for artifact in ARTIFACTS:
            tracking.download(f"runs:/{run}/{artifact}", folder)
    except UserError as error:
        raise UserError(f"The run {run} ({status}) has no report to show: it did not come to its end.") from error
    return folder


def render_comparison(contents: Sequence[Content]) -> str:
    """The page that compares runs: a row for each, and their quality against their size.

    Raises UserError where the runs' metrics differ.
    """
    metrics = {content["metric"] for content in contents}
    if len(metrics) > 1:
        raise UserError(f"The runs report different metrics ({', '.join(sorted(metrics))}); compare runs of one task.")
    [metric] = metrics
    first = contents[0]["metrics"]
    baseline = {"label": "before", "size_mb": first.get("size_mb_before"), metric: first.get(f"{metric}_before")}
    points = [content["metrics"] | {"label": content["title"]} for content in contents]
    # Runs that only measured a model have no baseline.
    figure = quality_against_cost([baseline, *points] if baseline["size_mb"] else points, metric, "size_mb")
    ratios = [f"{metric}_kept", "compression_ratio", "speedup", "macs_ratio"]
    columns = [metric, *ratios, "size_mb", "latency_ms", "seconds"]
    return report.render_page("comparison.html", contents=contents, columns=columns, figure=report.data_uri(figure))
