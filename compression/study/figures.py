"""The figures of the analysis, drawn from its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Table = Sequence[Mapping[str, Any]]
MAX_BARS, MAX_LABEL = 40, 60  # participants name their runs' methods, and matplotlib draws no more than 65,000 pixels


def draw_figures(tables: Mapping[str, Table]) -> dict[str, Figure]:
    """Draw the figures, by name; one whose table is empty is left out."""
    plots = {
        "times-by-background": plot_mean_hours,
        "learning": plot_learning_curves,
        "agreement": plot_agreement,
        "choices": plot_run_counts,
    }
    return {name: plot(tables[name]) for name, plot in plots.items() if tables[name]}


def plot_mean_hours(table: Table) -> Figure:
    """Bars of the mean clock hours of every row of the time sheet, one for each background."""
    names = list(dict.fromkeys(row["row"] for row in table))
    backgrounds = list(dict.fromkeys(row["background"] for row in table))
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.5))
    axes = figure.subplots()
    height = 0.8 / len(backgrounds)  # of a bar; the bars of a row take 0.8 of its space
    for number, background in enumerate(backgrounds):
        means = {row["row"]: row["mean_clock_hours"] for row in table if row["background"] == background}
        count = next(row["people"] for row in table if row["background"] == background)
        positions = [position + number * height for position in range(len(names))]
        axes.barh(positions, [means.get(name, 0) for name in names], height, label=f"{background} ({count})")
    axes.set_yticks([position + 0.4 - height / 2 for position in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("mean hours by the clock")
    axes.legend(frameon=False)
    return figure


def plot_learning_curves(table: Table) -> Figure:
    """Step lines of the best score so far against the hours of runs, one for each participant."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for name in dict.fromkeys(row["participant"] for row in table):
        curve = [row for row in table if row["participant"] == name]
        axes.step([r["hours"] for r in curve], [r["best_score"] for r in curve], where="post", marker="o", label=name)
    axes.set_xlabel("hours of runs")
    axes.set_ylabel("best so far: quality kept × compression")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_agreement(table: Table) -> Figure:
    """Scatter plot of clock hours against hours of runs, with the line on which they agree."""
    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    for name in dict.fromkeys(row["row"] for row in table):
        points = [row for row in table if row["row"] == name]
        axes.scatter([r["run_hours"] for r in points], [r["clock_hours"] for r in points], label=name)
    largest = max(max(r["run_hours"], r["clock_hours"]) for r in table)
    axes.plot([0, largest], [0, largest], color="0.6", linewidth=1, zorder=0)
    axes.set_xlabel("hours recorded by runs")
    axes.set_ylabel("hours by the clock")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_run_counts(table: Table) -> Figure:
    """Bars of the number of finished runs of each method, over all participants; of MAX_BARS at most."""
    totals: Counter[str] = Counter()
    for row in table:
        totals[row["method"]] += row["runs"]
    shown = totals.most_common(MAX_BARS)[::-1]  # the most frequent at the top
    figure = Figure(figsize=(7, 0.35 * len(shown) + 1.2))
    axes = figure.subplots()
    axes.barh(range(len(shown)), [count for _, count in shown])
    axes.set_yticks(range(len(shown)), [name[:MAX_LABEL] for name, _ in shown])
    axes.set_xlabel("finished runs")
    axes.locator_params(axis="x", integer=True)
    return figure
