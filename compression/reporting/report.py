"""report.html, one self-contained page for a run; and its table for the terminal and for MLflow."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from matplotlib.figure import Figure

from compression.deploy.measure import higher_is_better

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compression.reporting.content import Content

QUALITY = {  # what tasks measure besides their metric: label, and whether more of it is better
    "bits_per_byte": ("bits per byte", False),
    "token_accuracy": ("likeliest token right", True),
    "bleu": ("BLEU of what is written", True),
    "rouge_l": ("ROUGE-L of what is written", True),
    "accuracy_by_bytes": ("accuracy, by bytes of the options", True),
}
METRICS = (  # name, label, unit
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
    ("prefill_ms", "reading a whole window, median", "ms"),
    ("tokens_per_second", "tokens decoded, one text at a time", "/s"),
    ("kv_cache_mb", "keys and values of a window", "MB"),
)
# Of language models, where they mean something else; `decode_ms` is the same as `latency_ms`.
LANGUAGE_LABELS = {"macs": "MACs of one window", "throughput": "throughput, whole windows"}
DECODER_LABELS = {"latency_ms": "latency, one more token, median"}
NEUTRAL = ("sparsity",)  # a means to an end: neither more nor less of it is shown as good
FIGURE_ORDER = [
    "quality-against-size",
    "quality-against-latency",
    "training",
    "per-class",
    "confusion",
    "layers-params",
    "layers-sparsity",
]
SHARES = (  # shown in percent
    *("accuracy", "f1", "matthews_correlation", "pearson", "spearman", "sparsity"),
    *("token_accuracy", "rouge_l", "accuracy_by_bytes"),
)
# Changes below these are shown as neither better nor worse: of shares the difference, of others relative to before.
NOISE_OF_SHARES, NOISE = 5e-4, 0.02


def format_number(value: float | None, name: str = "") -> str:
    """The value of the metric `name` as people read it: shares in percent, millions as M, None as a dash."""
    if value is None:
        return "–"
    if name.split("_before")[0] in SHARES or name.endswith("_kept"):
        return f"{value:.2%}"
    for least, divisor, suffix in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= least:
            return f"{value / divisor:.4g}{suffix}"
    return f"{value:.4g}"


def comparison_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The before/after table of a run, from its `metric` and `metrics`: rows {label, before, after, change, good}.

    `good` says whether the change is for the better; it is None where there is no change or no better.
    """
    metrics, metric = content["metrics"], content["metric"]
    # Runs from before 0.3 had metrics alone of which more is better.
    rises = content.get("higher_is_better", True)
    labels = LANGUAGE_LABELS if "perplexity" in metrics else {}
    labels = labels | DECODER_LABELS if "decode_ms" in metrics else labels
    quality = {metric: (metric.replace("_", " "), rises)} | QUALITY
    return [
        *(_comparison_row(metrics, name, label, "", up) for name, (label, up) in quality.items() if name in metrics),
        *(
            _comparison_row(
                metrics,
                name,
                labels.get(name, label),
                unit,
                None if name in NEUTRAL else higher_is_better(name, metric, rises),
            )
            for name, label, unit in METRICS
            if name in metrics
        ),
    ]


def _comparison_row(
    metrics: Mapping[str, float], name: str, label: str, unit: str, more_is_better: bool | None
) -> dict[str, Any]:
    after, before = metrics[name], metrics.get(f"{name}_before")
    change, good = "", None
    if before is not None and (name in SHARES or before):
        change, is_change = _change(before, after, name in SHARES)
        good = (after > before) == more_is_better if is_change and more_is_better is not None else None
    return {
        "label": f"{label}, {unit}" if unit and name not in SHARES else label,
        "before": format_number(before, name),
        "after": format_number(after, name),
        "change": change,
        "good": good,
    }


def _change(before: float, after: float, is_share: bool) -> tuple[str, bool]:
    """The change in words, and whether it is large enough to be called better or worse."""
    if is_share:
        return f"{(after - before) * 100:+.2f} points", abs(after - before) >= NOISE_OF_SHARES
    return f"× {after / before:.3g}", abs(after / before - 1) >= NOISE


def comparison_table(content: Content) -> str:
    """The before/after table for a terminal."""
    columns = ("label", "before", "after", "change") if content["compared"] else ("label", "after")
    lines = [{"label": "", "before": "before", "after": "after", "change": ""}, *comparison_rows(content)]
    widths = {c: max(len(str(line[c])) for line in lines) for c in columns}
    return "\n".join(
        "  ".join(
            str(line[c]).ljust(widths[c]) if c == "label" else str(line[c]).rjust(widths[c]) for c in columns
        ).rstrip()
        for line in lines
    )


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """These columns of rows of numbers and texts, for a terminal."""
    lines = [list(columns), *([_format_cell(row.get(name, ""), name) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _format_cell(value: object, name: str) -> str:
    return format_number(value, name) if value is None or isinstance(value, float) else str(value)


def markdown_note(content: Content) -> str:
    """The note on the run's page in MLflow, in Markdown: the before/after table and the command."""
    columns = ("label", "before", "after", "change") if content["compared"] else ("label", "after")
    head = "| | before | after | |\n|---|--:|--:|--:|\n" if content["compared"] else "| | |\n|---|--:|\n"
    body = "\n".join("| " + " | ".join(str(row[c]) for c in columns) + " |" for row in comparison_rows(content))
    return f"{head}{body}\n\nRepeat it: `{content['command']}`"


def render_report(content: Content, folder: Path) -> str:
    """The page of a run, with the images of `folder/figures` and the rows of `folder/layers.csv` inside it."""
    with (folder / "layers.csv").open(newline="", encoding="utf-8") as file:
        layers = [merge_before_after(row) for row in csv.DictReader(file)]
    paths = sorted((folder / "figures").glob("*.png"), key=figure_order)
    figures = {path.stem.replace("-", " "): data_uri(path) for path in paths}
    return render_page("report.html", content=content, rows=comparison_rows(content), layers=layers, figures=figures)


def figure_order(path: Path) -> tuple[int, str]:
    """A sort key for figures: those of every run as in FIGURE_ORDER, then the method's own by name."""
    return (FIGURE_ORDER.index(path.stem) if path.stem in FIGURE_ORDER else len(FIGURE_ORDER), path.stem)


def merge_before_after(row: Mapping[str, str]) -> dict[str, str]:
    """Put `x_before` and `x` of a row of layers.csv into one cell: `before → after` where they differ."""
    after = {name: _format_layer_cell(name, value) for name, value in row.items() if not name.endswith("_before")}
    before = {name: _format_layer_cell(name, row[f"{name}_before"]) for name in after if f"{name}_before" in row}
    return {
        name: value if before.get(name, value) == value else f"{before[name] or '–'} → {value or '–'}"
        for name, value in after.items()
    }


def _format_layer_cell(name: str, value: str) -> str:
    return format_number(float(value), name) if name in ("params", "sparsity", "macs") and value else value


def render_page(template: str, **values: Any) -> str:
    """Render a template of `pages/`; what is put in is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(format_number=format_number, **values)


def data_uri(image: Path | Figure) -> str:
    """A PNG file or a figure as a `data:` URI, which holds the image itself."""
    if isinstance(image, Figure):
        png = io.BytesIO()
        # Drawing is the slow part: in a chain of three short steps, 30 figures took 47 of 114 s.
        image.savefig(png, format="png", bbox_inches="tight")
        content = png.getvalue()
    else:
        content = image.read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()
