"""Measuring a model, and comparing before with after. The names of the figures are the names in MLflow."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compression.deploy.onnx.export import export
from compression.deploy.parity import parity
from compression.deploy.timing import time_files
from compression.nn import layers
from compression.nn.inputs import Inputs
from compression.tasks.task import Task, evaluate

BATCH = 32  # examples in a timed batch
# Figures of a model, and those that compare two or tell of the way there; whether more of it is better.
FIGURES = {
    "params": False,
    "nonzero_params": False,
    "sparsity": True,
    "macs": False,
    "size_mb": False,
    "size_mb_compressed": False,
    "latency_ms": False,
    "latency_ms_p95": False,
    "throughput": True,
    "peak_memory_mb": False,
}
RATIOS = {"compression_ratio": True, "speedup": True, "macs_ratio": False, "seconds": False}


@dataclass(frozen=True)
class Measurement:
    """Everything known of one model on one task: quality on the test split, size, cost, layer by layer."""

    quality: dict[str, float]
    figures: dict[str, float]  # FIGURES; those of time and memory once it is `timed`
    layers: list[dict[str, Any]]
    file: Path  # the deployed form
    onnx: dict[str, float]  # the file against the torch model
    logits: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    backend: str = ""

    def metrics(self) -> dict[str, float]:
        return self.quality | self.figures


def measure(models: list[nn.Module], task: Task, folder: Path, threads: int, cuda: bool = False) -> list[Measurement]:
    """Measure models in one go, by the same code, timed in turn; writes `<i>.onnx` for each into `folder`."""
    examined = [examine(model, task, folder / f"{i}.onnx", threads) for i, model in enumerate(models)]
    return timed(examined, task, threads, cuda)


def examine(model: nn.Module, task: Task, file: Path, threads: int) -> Measurement:
    """What a model on the CPU is and answers; its deployed form is written to `file` and checked against it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    export(model, task.example(4), file)
    check = parity(model, file, task.test, task.metrics, threads)
    sizes = {"size_mb": file.stat().st_size / 1e6, "size_mb_compressed": compressed_size(file) / 1e6}
    return Measurement(
        quality=task.metrics(check.logits, check.targets) | also(model, task),
        figures=structure(model, task.example()) | sizes,
        layers=layer_table(model, task.example()),
        file=file,
        onnx={"onnx_max_difference": check.max_difference, "onnx_agreement": check.agreement}
        | {f"onnx_{name}": value for name, value in check.quality.items()},
        logits=check.logits,
        targets=check.targets,
    )


def timed(examined: Sequence[Measurement], task: Task, threads: int, cuda: bool = False) -> list[Measurement]:
    """The same with time and memory of their files, run in turn in one process."""
    timings = time_files([one.file for one in examined], task.example(BATCH), threads, cuda)
    return [
        replace(
            one,
            figures=one.figures | {name: getattr(timing, name) for name in FIGURES if hasattr(timing, name)},
            backend=timing.backend,
        )
        for one, timing in zip(examined, timings, strict=True)
    ]


def also(model: nn.Module, task: Task) -> dict[str, float]:
    """The task's metric on its further test splits, `accuracy_mismatched` say."""
    return {f"{task.metric}_{name}": evaluate(model, split, task)[task.metric] for name, split in task.also.items()}


def structure(model: nn.Module, example: Inputs) -> dict[str, float]:
    """Parameters, non-zero parameters, sparsity of the prunable layers' weights, MACs of one example."""
    weights = [layers.weight(m) for m in layers.prunable_layers(model).values()]
    total, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    count = layers.count_parameters(model)
    return {
        "params": count,
        "nonzero_params": count - zeros,
        "sparsity": zeros / total if total else 0.0,
        "macs": sum(layers.count_macs(model, example).values()),
    }


def layer_table(model: nn.Module, example: Inputs) -> list[dict[str, Any]]:
    """A row per prunable layer: name, type, shape, parameters, sparsity, bits, MACs."""
    costs = layers.count_macs(model, example)
    rows = []
    for name, module in layers.prunable_layers(model).items():
        weight = layers.weight(module)
        rows.append(
            {
                "layer": layers.original_name(model, name),
                "type": type(module).__name__,
                "shape": "x".join(map(str, weight.shape)),
                "params": weight.numel(),
                "sparsity": float((weight == 0).float().mean()) if weight.numel() else 0.0,
                "bits": layers.weight_bits(module),
                "macs": costs[name],
            }
        )
    return rows


def better(name: str, metric: str) -> bool | None:
    """Whether more of the figure `name` is better, with `metric` the task's; None for what is no figure."""
    return True if name in (metric, f"{metric}_kept") else (FIGURES | RATIOS).get(name)


def compressed_size(path: Path) -> int:
    """Bytes of the file after gzip: zeros and few distinct values show here, not in the raw size."""
    return len(gzip.compress(path.read_bytes(), compresslevel=6))


def compare(before: Measurement, after: Measurement, metric: str) -> dict[str, float]:
    """The flat metrics of a run: the after's own names, `<name>_before`, and the ratios.

    `<metric>_kept` and `macs_ratio` are after/before; `compression_ratio` and `speedup` before/after.
    """
    now, then = after.metrics(), before.metrics()

    def ratio(over: float, under: float) -> dict[str, float]:
        return {"": over / under} if under else {}

    ratios = {
        f"{metric}_kept": ratio(now[metric], then[metric]),
        "compression_ratio": ratio(then["size_mb"], now["size_mb"]),
        "speedup": ratio(then["latency_ms"], now["latency_ms"]),
        "macs_ratio": ratio(now["macs"], then["macs"]),
    }
    found = {name: r[""] for name, r in ratios.items() if r}
    return now | {f"{name}_before": value for name, value in then.items()} | found | after.onnx
