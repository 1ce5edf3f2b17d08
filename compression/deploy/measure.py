"""Measure models, and compare the metrics before and after compression; all names are those of the MLflow metrics."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from compression.deploy.onnx import files
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.deploy.timing import time_files
from compression.nn import layers
from compression.tasks.task import Task, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from compression.nn.inputs import Inputs

BATCH_SIZE = 32  # of the timed batch
GZIP = 31  # zlib's number for the largest window, and gzip's header around the data
# Metrics of one model, and metrics of a run that compares two; whether a higher value is better.
EFFICIENCY_METRICS = {
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
COMPARISON_METRICS = {"compression_ratio": True, "speedup": True, "macs_ratio": False, "seconds": False}


@dataclass(frozen=True)
class Measurement:
    """The metrics of one model on one task, and the ONNX file that they were measured on."""

    quality: dict[str, float]  # task metrics on the test splits
    efficiency: dict[str, float]  # EFFICIENCY_METRICS; those of time and memory are there after `add_timings`
    layers: list[dict[str, Any]]  # rows of `layer_table`
    file: Path  # the ONNX file
    onnx: dict[str, float]  # metrics of the ONNX file's outputs, and their difference from the torch model's
    logits: Tensor = field(repr=False)  # (n, outputs), of the torch model on the test split
    targets: Tensor = field(repr=False)  # (n,)
    backend: str = ""  # runtime, execution provider and number of threads of the timings

    def metrics(self) -> dict[str, float]:
        """Return quality and efficiency metrics in one dict."""
        return self.quality | self.efficiency


def measure_model(model: nn.Module, task: Task, file: Path, threads: int) -> Measurement:
    """Export a model on the CPU to `file` and measure everything but time and memory.

    Raises UserError if the model cannot be exported or the file's outputs differ from the model's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    export(model, task.example(4), file)
    parity = check_parity(model, file, task.test, task.compute_metrics, threads)
    sizes = {"size_mb": stored_size(file) / 1e6, "size_mb_compressed": compressed_size(file) / 1e6}
    return Measurement(
        quality=task.compute_metrics(parity.logits, parity.targets) | further_split_metrics(model, task),
        efficiency=structure_metrics(model, task.example()) | sizes,
        layers=layer_table(model, task.example()),
        file=file,
        onnx={"onnx_max_difference": parity.max_difference, "onnx_agreement": parity.agreement}
        | {f"onnx_{name}": value for name, value in parity.quality.items()},
        logits=parity.logits,
        targets=parity.targets,
    )


def add_timings(measurements: Sequence[Measurement], task: Task, threads: int, cuda: bool = False) -> list[Measurement]:
    """Return the measurements with the latency, throughput and memory of their files, timed alternately."""
    timings = time_files([measurement.file for measurement in measurements], task.example(BATCH_SIZE), threads, cuda)
    return [
        replace(
            measurement,
            efficiency=measurement.efficiency
            | {name: getattr(timing, name) for name in EFFICIENCY_METRICS if hasattr(timing, name)},
            backend=timing.backend,
        )
        for measurement, timing in zip(measurements, timings, strict=True)
    ]


def further_split_metrics(model: nn.Module, task: Task) -> dict[str, float]:
    """Evaluate the task's metric on its further test splits, as `<metric>_<split>`: `accuracy_mismatched`, say."""
    return {
        f"{task.metric}_{name}": evaluate(model, split, task)[task.metric]
        for name, split in task.further_test_splits.items()
    }


def structure_metrics(model: nn.Module, example: Inputs) -> dict[str, float]:
    """Count parameters, non-zero parameters, and MACs of a forward pass of `example`.

    Sparsity is the share of zeros in the weights of prunable layers, 0 for a model without any.
    """
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
    """Return a row per prunable layer: name, type, shape, parameters, sparsity, bits per weight, MACs."""
    macs = layers.count_macs(model, example)
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
                "macs": macs[name],
            }
        )
    return rows


def higher_is_better(name: str, task_metric: str) -> bool | None:
    """Whether higher values of the metric `name` are better; None for an unknown metric."""
    if name in (task_metric, f"{task_metric}_kept"):
        return True
    return (EFFICIENCY_METRICS | COMPARISON_METRICS).get(name)


def stored_size(path: Path) -> int:
    """Return the bytes of an ONNX file, with those of its weights where they are in a file of their own."""
    return sum(part.stat().st_size for part in files.parts(path))


def compressed_size(path: Path) -> int:
    """Return the bytes of `stored_size` after gzip, which zeros and few distinct values reduce, unlike the raw size."""
    return sum(map(_gzipped_size, files.parts(path)))


def _gzipped_size(path: Path) -> int:
    gzip = zlib.compressobj(level=6, wbits=GZIP)
    with path.open("rb") as file:  # piece by piece: it may be larger than what is left of the memory
        size = sum(len(gzip.compress(piece)) for piece in iter(partial(file.read, 1 << 20), b""))
    return size + len(gzip.flush())


def compare(before: Measurement, after: Measurement, task_metric: str) -> dict[str, float]:
    """Return the metrics of a run: those of `after`, those of `before` as `<name>_before`, and ratios of both.

    `<metric>_kept` and `macs_ratio` are after/before; `compression_ratio` and `speedup` before/after. A ratio whose
    denominator is zero is left out.
    """
    new, old = after.metrics(), before.metrics()
    fractions = {
        f"{task_metric}_kept": (new[task_metric], old[task_metric]),
        "compression_ratio": (old["size_mb"], new["size_mb"]),
        "speedup": (old["latency_ms"], new["latency_ms"]),
        "macs_ratio": (new["macs"], old["macs"]),
    }
    ratios = {name: numerator / denominator for name, (numerator, denominator) in fractions.items() if denominator}
    return new | {f"{name}_before": value for name, value in old.items()} | ratios | after.onnx
