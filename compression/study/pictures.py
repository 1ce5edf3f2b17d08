"""The pictures of the analysis, from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def draw(tables: Mapping[str, Rows]) -> dict[str, Figure]:
    """Picture by name; one for which there is no data yet is left out."""
    makers = {"times-by-background": hours, "learning": learning, "agreement": agreement, "choices": choices}
    return {name: make(tables[name]) for name, make in makers.items() if tables[name]}


def hours(rows: Rows) -> Figure:
    """Mean hours by the clock for every row of the sheet, a bar for each background."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    groups = list(dict.fromkeys(row["background"] for row in rows))
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.5))
    axes = figure.subplots()
    thickness = 0.8 / len(groups)
    for number, group in enumerate(groups):
        means = {row["row"]: row["mean_clock_hours"] for row in rows if row["background"] == group}
        people = next(row["people"] for row in rows if row["background"] == group)
        places = [place + number * thickness for place in range(len(names))]
        axes.barh(places, [means.get(name, 0) for name in names], thickness, label=f"{group} ({people})")
    axes.set_yticks([place + 0.4 - thickness / 2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("mean hours by the clock")
    axes.legend(frameon=False)
    return figure


def learning(rows: Rows) -> Figure:
    """The best result so far against the hours of runs, a line for each participant."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for name in dict.fromkeys(row["participant"] for row in rows):
        own = [row for row in rows if row["participant"] == name]
        axes.step([r["hours"] for r in own], [r["best_score"] for r in own], where="post", marker="o", label=name)
    axes.set_xlabel("hours of runs")
    axes.set_ylabel("best so far: quality kept × compression")
    axes.legend(frameon=False, fontsize=8)
    return figure


def agreement(rows: Rows) -> Figure:
    """Hours by the clock against hours of runs; on the line they agree."""
    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        axes.scatter([r["run_hours"] for r in own], [r["clock_hours"] for r in own], label=name)
    most = max(max(r["run_hours"], r["clock_hours"]) for r in rows)
    axes.plot([0, most], [0, most], color="0.6", linewidth=1, zorder=0)
    axes.set_xlabel("hours recorded by runs")
    axes.set_ylabel("hours by the clock")
    axes.legend(frameon=False, fontsize=8)
    return figure


def choices(rows: Rows) -> Figure:
    """How many finished runs each method had, over everybody."""
    totals: dict[str, int] = {}
    for row in rows:
        totals[row["method"]] = totals.get(row["method"], 0) + row["runs"]
    names = sorted(totals, key=totals.__getitem__)
    figure = Figure(figsize=(7, 0.35 * len(names) + 1.2))
    axes = figure.subplots()
    axes.barh(names, [totals[name] for name in names])
    axes.set_xlabel("finished runs")
    axes.locator_params(axis="x", integer=True)
    return figure
