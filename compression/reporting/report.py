"""report.html: one self-contained page from comparison.json, layers.csv and the figures of a run."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from compression.deploy.measure import better

ROWS = (  # name, what it is called, unit
    ("params", "parameters", ""),
    ("nonzero_params", "non-zero parameters", ""),
    ("sparsity", "sparsity", "%"),
    ("macs", "MACs of one example", ""),
    ("size_mb", "size of the ONNX file", "MB"),
    ("size_mb_compressed", "the same, gzipped", "MB"),
    ("latency_ms", "latency, one example, median", "ms"),
    ("latency_ms_p95", "latency, 95th percentile", "ms"),
    ("throughput", "throughput, batches of 32", "/s"),
    ("peak_memory_mb", "peak memory", "MB"),
)
NEITHER = ("sparsity",)  # a means: neither good nor bad to look at
FIRST = [
    "quality-against-size",
    "quality-against-latency",
    "training",
    "per-class",
    "confusion",
    "layers-params",
    "layers-sparsity",
]
SHARES = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman", "sparsity")


def number(value: float | None, name: str = "") -> str:
    """A figure as people read it: shares in percent, millions as M."""
    if value is None:
        return "–"
    if name.split("_before")[0] in SHARES or name.endswith("_kept"):
        return f"{value:.2%}"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == ' k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The before/after table: label, before, after, how they relate, and whether that is good."""
    metrics, metric = content["metrics"], content["metric"]
    return [
        _row(metrics, name, label, unit, None if name in NEITHER else better(name, metric))
        for name, label, unit in ((metric, metric.replace("_", " "), ""), *ROWS)
        if name in metrics
    ]


def _row(metrics: dict[str, float], name: str, label: str, unit: str, better: bool | None) -> dict[str, Any]:
    after, before = metrics[name], metrics.get(f"{name}_before")
    change, good = "", None
    if before is not None and name in SHARES:
        change = f"{(after - before) * 100:+.2f} points"
        good = None if better is None or abs(after - before) < 5e-4 else (after > before) == better
    elif before:
        change = f"× {after / before:.3g}"
        good = None if better is None or abs(after / before - 1) < 0.02 else (after > before) == better
    shown = {"before": number(before, name), "after": number(after, name)}
    return {
        "label": f"{label}{', ' + unit if unit and name not in SHARES else ''}",
        "change": change,
        "good": good,
    } | shown


def table(content: dict[str, Any]) -> str:
    """The same table for a terminal."""
    columns = ("label", "before", "after", "change") if content["compared"] else ("label", "after")
    lines = [{"label": "", "before": "before", "after": "after", "change": ""}, *rows(content)]
    widths = {c: max(len(str(line[c])) for line in lines) for c in columns}
    return "\n".join(
        "  ".join(
            str(line[c]).ljust(widths[c]) if c == "label" else str(line[c]).rjust(widths[c]) for c in columns
        ).rstrip()
        for line in lines
    )


def columns(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Rows of figures and texts for a terminal, a column for each of `names`."""
    lines = [list(names), *([_text(row.get(name, ""), name) for name in names] for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _text(value: Any, name: str) -> str:
    return number(value, name) if value is None or isinstance(value, float) else str(value)


def note(content: dict[str, Any]) -> str:
    """The Markdown shown on the run's page in MLflow."""
    head = "| | before | after | |\n|---|--:|--:|--:|\n" if content["compared"] else "| | |\n|---|--:|\n"
    cells = ("label", "before", "after", "change") if content["compared"] else ("label", "after")
    body = "\n".join("| " + " | ".join(str(row[c]) for c in cells) + " |" for row in rows(content))
    return f"{head}{body}\n\nRepeat it: `{content['command']}`"


def render(content: dict[str, Any], folder: Path) -> str:
    """The page, with the pictures of `folder/figures` and the rows of `folder/layers.csv` inside it."""
    with open(folder / "layers.csv", newline="") as file:
        layers = [merged(row) for row in csv.DictReader(file)]
    paths = sorted((folder / "figures").glob("*.png"), key=place)
    pictures = {path.stem.replace("-", " "): data_uri(path) for path in paths}
    return page("report.html", content=content, rows=rows(content), layers=layers, pictures=pictures)


def place(path: Path) -> tuple[int, str]:
    """Where a picture comes in the report: what every run has first, in FIRST's order, then the method's own."""
    return (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST), path.stem)


def merged(row: dict[str, str]) -> dict[str, str]:
    """A row of layers.csv with `x_before` and `x` in one cell, `before → after`, where they differ."""
    now = {name: _cell(name, value) for name, value in row.items() if not name.endswith("_before")}
    then = {name: _cell(name, row[f"{name}_before"]) for name in now if f"{name}_before" in row}
    return {
        name: value if then.get(name, value) == value else f"{then[name] or '–'} → {value or '–'}"
        for name, value in now.items()
    }


def _cell(name: str, value: str) -> str:
    return number(float(value), name) if name in ("params", "sparsity", "macs") and value else value


def page(template: str, **values: Any) -> str:
    """A template of `pages/`, filled in; what comes from outside is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(number=number, **values)


def data_uri(picture: Path | Figure) -> str:
    """A PNG file, or a figure, as an address that holds the picture itself."""
    if isinstance(picture, Figure):
        drawn = io.BytesIO()
        picture.savefig(drawn, format="png", bbox_inches="tight")
        return data_uri_of(drawn.getvalue())
    return data_uri_of(picture.read_bytes())


def data_uri_of(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
