"""Measure models, and compare the metrics before and after compression; all names are those of the MLflow metrics."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from compression.deploy.onnx import files
from compression.deploy.onnx.export import export
from compression.deploy.onnx.modules import fits_matmul_nbits
from compression.deploy.parity import Parity, check_parity
from compression.deploy.timing import Timing, time_files
from compression.errors import UserError
from compression.nn import layers
from compression.nn.quantized import QuantLinear
from compression.tasks.task import Task, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from compression.nn.inputs import Inputs
    from compression.tasks.generation import Continuation
    from compression.tasks.scores import Scores

BATCH_SIZE = 32  # of the timed batch
WHOLE_WINDOWS = ", whole windows at a time: not all files keep keys and values"  # said of a decoder without a cache
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
# Of decoders whose files have a cache: there `latency_ms` is that of one token.
DECODER_METRICS = {"prefill_ms": False, "decode_ms": False, "tokens_per_second": True, "kv_cache_mb": False}
COMPARISON_METRICS = {"compression_ratio": True, "speedup": True, "macs_ratio": False, "seconds": False}


@dataclass(frozen=True)
class Measurement:
    """The metrics of one model on one task, and the ONNX file that they were measured on."""

    quality: dict[str, float]  # task metrics on the test splits
    efficiency: dict[str, float]  # EFFICIENCY_METRICS; those of time and memory are there after `add_timings`
    layers: list[dict[str, Any]]  # rows of `layer_table`
    file: Path  # the ONNX file
    onnx: dict[str, float]  # metrics of the ONNX file's outputs, and their difference from the torch model's
    scores: Scores = field(repr=False)  # of the torch model on the test split
    backend: str = ""  # runtime, execution provider and number of threads of the timings
    continuations: list[Continuation] = field(default_factory=list, repr=False)  # what a language model writes

    def metrics(self) -> dict[str, float]:
        """Return quality and efficiency metrics in one dict."""
        return self.quality | self.efficiency


def measure_model(model: nn.Module, task: Task, file: Path, threads: int) -> Measurement:
    """Export a model on the CPU to `file` and measure everything but time and memory.

    Raises UserError if the model cannot be exported or the file's outputs differ from the model's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    parity = _export(model, task, file, threads)
    written, continuations = task.continuations(model) if task.continuations else ({}, [])
    sizes = {"size_mb": stored_size(file) / 1e6, "size_mb_compressed": compressed_size(file) / 1e6}
    return Measurement(
        quality=parity.expected.metrics() | further_split_metrics(model, task) | written,
        efficiency=structure_metrics(model, task.example()) | sizes,
        layers=layer_table(model, task.example()),
        file=file,
        onnx={
            "onnx_max_difference": parity.max_difference,
            "onnx_agreement": parity.agreement,
            "onnx_agreement_within_noise": parity.agreement_within_noise,
        }
        | {f"onnx_{name}": value for name, value in parity.actual.metrics().items()},
        scores=parity.expected,
        continuations=continuations,
    )


def _export(model: nn.Module, task: Task, file: Path, threads: int) -> Parity:
    """Write the file with the fastest kernels by which it answers as the model does; raises as `measure_model` does."""
    can_round = any(isinstance(layer, QuantLinear) and fits_matmul_nbits(layer) for layer in model.modules())
    for rounds_inputs in (True, False) if can_round else (False,):
        export(model, task.example(4), file, rounds_inputs)
        try:
            return check_parity(model, file, task.test, task, threads)
        except UserError:
            if not rounds_inputs:
                raise
    raise AssertionError("the last way returns or raises")


def add_timings(measurements: Sequence[Measurement], task: Task, threads: int, cuda: bool = False) -> list[Measurement]:
    """Return the measurements with the latency, throughput and memory of their files, timed alternately."""
    # Of long texts with many tokens fewer: a batch of 32 windows of SmolLM2 has 3 GB of logits.
    batch = task.example(min(BATCH_SIZE, task.test.batch_size(task.outputs)))
    timings = time_files([measurement.file for measurement in measurements], batch, threads, cuda)
    return [
        replace(
            measurement,
            efficiency=measurement.efficiency | _timed_metrics(timing),
            backend=timing.backend + (WHOLE_WINDOWS if task.predicts_tokens and timing.decode_ms is None else ""),
        )
        for measurement, timing in zip(measurements, timings, strict=True)
    ]


def _timed_metrics(timing: Timing) -> dict[str, float]:
    timed = {name: getattr(timing, name, None) for name in EFFICIENCY_METRICS | DECODER_METRICS}
    return {name: value for name, value in timed.items() if value is not None}


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
    """Return a row per linear layer or convolution: name, type, shape, parameters, sparsity, bits per weight, MACs."""
    macs = layers.count_macs(model, example)
    rows = []
    for name, module in layers.weighted_layers(model).items():
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


def higher_is_better(name: str, quality: str, rises: bool) -> bool | None:
    """Whether higher values of the metric `name` are better; None for an unknown metric.

    `quality` is the task's metric, and `rises` says whether more of that is better.
    """
    known = EFFICIENCY_METRICS | DECODER_METRICS | COMPARISON_METRICS | {quality: rises, f"{quality}_kept": True}
    return known.get(name)


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


def compare(before: Measurement, after: Measurement, task: Task) -> dict[str, float]:
    """Return the metrics of a run: those of `after`, those of `before` as `<name>_before`, and ratios of both.

    `<metric>_kept` is after/before, and before/after where less of the metric is better. `macs_ratio` is after/before;
    `compression_ratio` and `speedup` before/after. A ratio whose denominator is zero is left out.
    """
    new, old = after.metrics(), before.metrics()
    quality = new[task.metric], old[task.metric]
    fractions = {
        f"{task.metric}_kept": quality if task.higher_is_better else quality[::-1],
        "compression_ratio": (old["size_mb"], new["size_mb"]),
        "speedup": (old["latency_ms"], new["latency_ms"]),
        "macs_ratio": (new["macs"], old["macs"]),
    }
    ratios = {name: numerator / denominator for name, (numerator, denominator) in fractions.items() if denominator}
    return new | {f"{name}_before": value for name, value in old.items()} | ratios | after.onnx
