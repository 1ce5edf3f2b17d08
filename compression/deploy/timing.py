"""Latency, throughput and memory of ONNX files, taken in a process of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compression.deploy.onnx.export import named
from compression.nn.inputs import Inputs, map_inputs


@dataclass(frozen=True)
class Timing:
    """What ONNX Runtime needed for one file: milliseconds per single example, examples per second in batches."""

    latency_ms: float
    latency_ms_p95: float
    throughput: float
    peak_memory_mb: float
    backend: str


def time_files(paths: list[Path], example: Inputs, threads: int, cuda: bool = False) -> list[Timing]:
    """Time the files in turn, A B A B …, in a fresh process, so that a drift of the machine hits all alike.

    `example` is a prepared batch: its first row gives the latency, all of it the throughput.
    """
    with _order(example, threads, cuda) as order:
        timings = _stopwatch(order | {"files": [str(p) for p in paths]})
        peaks = [_stopwatch(order | {"files": [str(p)], "memory": True})[0] for p in paths]
    return [Timing(**timing, **peak) for timing, peak in zip(timings, peaks, strict=True)]


def latencies(paths: list[Path], example: Inputs, threads: int) -> list[float]:
    """Milliseconds for the first row of `example` alone, of each file; timed as by `time_files`."""
    with _order(example, threads) as order:
        return [timing["latency_ms"] for timing in _stopwatch(order | {"files": [str(p) for p in paths]})]


@contextlib.contextmanager
def _order(example: Inputs, threads: int, cuda: bool = False) -> Iterator[dict[str, Any]]:
    """What the stopwatch is told besides the files; the inputs lie on disk as long as this lasts."""
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = {name: t.numpy() for name, t in named(map_inputs(Tensor.cpu, example)).items()}
        np.savez(feeds, **arrays)
        yield {"inputs": str(feeds), "threads": threads, "cuda": cuda}


def _stopwatch(order: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "compression.deploy.stopwatch"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"The timing process failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)
