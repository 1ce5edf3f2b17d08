"""A Markdown table of an experiment's finished runs, a row per command, mean and spread over its seeds.

python benchmarks/table.py EXPERIMENT [--metric accuracy] [--column seconds …]
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import click
import mlflow

SHARES = ("accuracy", "f1", "matthews_correlation")


def label(run: mlflow.entities.Run) -> str:
    tags, params = run.data.tags, run.data.params
    model = params.get("student") or (Path(params.get("model", "")).name if tags.get("stage") == "train" else "")
    return " ".join(filter(None, [tags.get("mlflow.runName", "").split(" seed")[0], model]))


def cell(values: list[float], name: str) -> str:
    scale = 100 if name in SHARES or name.startswith(SHARES) else 1
    mean = statistics.mean(values) * scale
    spread = f" ± {statistics.stdev(values) * scale:.2g}" if len(values) > 1 else ""
    return f"{mean:.4g}{spread}"


@click.command()
@click.argument("experiment")
@click.option("--column", "columns", multiple=True, default=("accuracy", "params", "size_mb", "latency_ms", "seconds"))
def main(experiment: str, columns: tuple[str, ...]) -> None:
    runs = mlflow.search_runs(
        experiment_names=[experiment], filter_string="attributes.status = 'FINISHED'", output_format="list"
    )
    rows = defaultdict(list)
    for run in reversed([run for run in runs if "mlflow.parentRunId" not in run.data.tags]):
        rows[label(run)].append(run.data.metrics)
    print("| run | runs | " + " | ".join(columns) + " |\n|---|--:|" + "--:|" * len(columns))
    for name, metrics in rows.items():
        cells = [cell([m[c] for m in metrics if c in m], c) if any(c in m for m in metrics) else "" for c in columns]
        print(f"| {name} | {len(metrics)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
