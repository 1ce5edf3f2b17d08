"""The artifacts of a run: metrics, comparison.json, layers.csv, the model, the ONNX file, figures, the report."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from compression import tracking
from compression.deploy.measure import Measurement, compare
from compression.deploy.onnx import files as onnx_files
from compression.models import storage
from compression.nn import transformer
from compression.reporting import report
from compression.reporting.figures import runs as figures
from compression.reporting.survey import MINIMIZED

if TYPE_CHECKING:
    from torch import nn

    from compression.tasks.task import Task

SLOWER = 1.1  # times the original's time: less may be chance


def summarize(task: Task, measured: list[Measurement], seconds: float) -> dict[str, float]:
    """The run's metrics by name: of [before, …, after] a comparison, of a single measurement its own.

    `seconds` is the time spent in the steps.
    """
    last = measured[-1]
    own = compare(measured[0], last, task) if len(measured) > 1 else last.metrics() | last.onnx
    return own | {"seconds": seconds}


def sanity_checks(task: Task, model: nn.Module, measured: list[Measurement]) -> list[str]:
    """Warnings about the last model: empty layers, quality at chance, an unreadable config, a slower file."""
    # transformers needs a head and a neuron in every layer: those that were kept with zeros are not over-pruned.
    last, removed = measured[-1], transformer.emptied_layers(model)
    empty = [row["layer"] for row in last.layers if row["sparsity"] == 1.0 and row["layer"] not in removed]
    said = [f"Over-pruned: nothing is left in {', '.join(empty)}."] if empty else []
    if transformer.is_transformer(model) and (differing := transformer.entries_unknown_to_transformers(model.config)):
        said.append(
            f"transformers' from_pretrained cannot read this model, whose config needs {' and '.join(differing)}: "
            "only this lab and ONNX do. Layers of equal width, and heads cut together with hidden, it can read."
        )
    if sentence := last.scores.doubt(task.metric):
        said.append(sentence)
    if len(measured) > 1 and (sentence := slowdown(measured[0], last)):
        said.append(sentence)
    return said


def slowdown(before: Measurement, after: Measurement) -> str:
    """A sentence about a file that is slower than the original's, for one example and in batches; empty for another."""
    latency = after.efficiency["latency_ms"] / before.efficiency["latency_ms"]
    batches = before.efficiency["throughput"] / after.efficiency["throughput"]
    if latency < SLOWER or batches < SLOWER:
        return ""
    return (
        f"The ONNX file is slower than the original's: {latency:.2f} times the time for one example, {batches:.2f} "
        f"times in batches ({after.backend})."
    )


def keep(
    run: tracking.Run,
    task: Task,
    model: nn.Module,
    measured: list[Measurement],
    metrics: dict[str, float],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Log metrics, figures, tables and files to `run`; the content of comparison.json."""
    folder = run.artifact_folder
    run.metrics(metrics)
    run.tag("backend", measured[-1].backend)
    if not task.higher_is_better:
        run.tag(MINIMIZED, task.metric)
    keep_model(run, task, model, about)
    deployed = onnx_files.copy(measured[-1].file, folder / "model.onnx")
    # Figures, then tables, then the page, which is made of both.
    draw(run, task, measured, about["step_labels"])
    run.table("layers", layer_rows(measured))
    content = {
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "metrics": metrics,
        "compared": len(measured) > 1,
        "continuations": continuation_rows(measured),
        "after_each_step": after_each_step(measured, about["step_labels"]) if len(measured) > 2 else [],
        "source": task.source,
        "limited": task.is_limited,
        "backend": measured[-1].backend,
        "warnings": run.warnings,
        **about,
    }
    (folder / "comparison.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(report.render_report(content, folder), encoding="utf-8")
    for file in (*deployed, folder / "comparison.json", folder / "report.html"):
        run.artifact(file)
    run.note(report.markdown_note(content))
    return content


def keep_model(run: tracking.Run, task: Task, model: nn.Module, about: dict[str, Any]) -> None:
    """Log the model as the artifact `model`, with its tokenizer."""
    folder = storage.save(model, run.artifact_folder / "model", about)
    if task.tokenizer is not None:
        task.tokenizer.save_pretrained(folder)
    tracking.write_mlmodel(folder)
    run.artifacts(folder, "model")


def layer_rows(measured: list[Measurement]) -> list[dict[str, Any]]:
    """The rows of layers.csv: one per layer before or after, with `<column>_before` next to each column."""
    earlier = {row["layer"]: row for row in measured[0].layers} if len(measured) > 1 else {}
    later = {row["layer"]: row for row in measured[-1].layers}
    rows = []
    for name in dict.fromkeys(itertools.chain(earlier, later)):
        old, new = earlier.get(name, {}), later.get(name, {})
        columns = dict.fromkeys([*old, *new])
        rows.append(
            {"layer": name}
            | {c: new.get(c, "") for c in columns if c != "layer"}
            | ({f"{c}_before": old.get(c, "") for c in columns if c != "layer"} if earlier else {})
        )
    return rows


def continuation_rows(measured: list[Measurement]) -> list[dict[str, Any]]:
    """Prompts, what stands in the data after them, and what the first and the last model write; of language models."""
    named = {"before": measured[0], "after": measured[-1]} if len(measured) > 1 else {"written": measured[0]}
    return [
        {"prompt": each.prompt, "expected": each.expected}
        | {name: measurement.continuations[i].written for name, measurement in named.items()}
        for i, each in enumerate(measured[-1].continuations)
    ]


def after_each_step(measured: list[Measurement], steps: list[str]) -> list[dict[str, Any]]:
    """The metrics before the first step and after each that was measured, each with its `label`."""
    labels = ["before", *(steps if len(steps) == len(measured) - 1 > 1 else ["after"])]
    return [{"label": label} | one.metrics() for label, one in zip(labels, measured, strict=True)]


def draw(run: tracking.Run, task: Task, measured: list[Measurement], steps: list[str]) -> None:
    """Draw the figures that every run has."""
    before, after = (measured[0] if len(measured) > 1 else None), measured[-1]
    if before is not None:
        points = after_each_step(measured, steps)
        run.figure("quality-against-size", figures.quality_against_cost(points, task.metric, "size_mb"))
        run.figure("quality-against-latency", figures.quality_against_cost(points, task.metric, "latency_ms"))
    counts = [measurement.scores.confusion() for measurement in ([before] if before else []) + [after]]
    if matrices := [each.numpy() for each in counts if each is not None]:
        earlier, later = (matrices[0] if before else None), matrices[-1]
        run.figure("confusion", figures.confusion_matrices(earlier, later, task.labels))
        run.figure("per-class", figures.accuracy_by_class(earlier, later, task.labels))
    if "train_loss" in run.curves:
        run.figure("training", figures.training_curves(run.curves, task.metric))
    rows = before.layers if before else None
    run.figure("layers-params", figures.bars_by_layer(rows, after.layers, "params", "Parameters by layer"))
    if any(row["sparsity"] > 0.005 for row in after.layers):
        run.figure("layers-sparsity", figures.bars_by_layer(rows, after.layers, "sparsity", "Sparsity by layer"))
