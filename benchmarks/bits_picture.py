"""Accuracy against bits: a line per method over the finished runs of an experiment.

python benchmarks/bits_picture.py EXPERIMENT OUTPUT.png
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import click
import mlflow
from matplotlib.ticker import PercentFormatter

from compression.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (1, 2, 4, 8)


def points(experiment: str) -> tuple[dict[str, list[tuple[int, float]]], float]:
    """(bits, accuracy) of every run by its method, and the accuracy before."""
    runs = mlflow.search_runs(
        experiment_names=[experiment], filter_string="attributes.status = 'FINISHED'", output_format="list"
    )
    quantized = [run for run in runs if run.data.tags.get("family") == "quantize"]
    found = defaultdict(list)
    for run in quantized:
        bits = int(run.data.params.get("bits", 1))  # bnn has no other width
        found[run.data.tags["method"]].append((bits, run.data.metrics["accuracy"]))
    return {method: sorted(line) for method, line in found.items()}, quantized[0].data.metrics["accuracy_before"]


@style.styled
def draw(lines: dict[str, list[tuple[int, float]]], before: float) -> Figure:
    figure, [axes] = style.canvas()
    axes.axhline(before, color=style.BEFORE, linestyle="--", label="32-bit floats")
    for method, line in sorted(lines.items()):
        axes.plot(*zip(*line, strict=True), marker="o", label=method)
    axes.set(xlabel="bits of weights and activations", ylabel="accuracy", title="Accuracy against bits")
    axes.set_xscale("log", base=2)
    axes.set_xticks(WIDTHS, map(str, WIDTHS))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend()
    return figure


@click.command()
@click.argument("experiment")
@click.argument("output")
def main(experiment: str, output: str) -> None:
    draw(*points(experiment)).savefig(output, dpi=110)


if __name__ == "__main__":
    main()
