"""Measure latency, throughput and memory of ONNX files in a process of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from compression.deploy.onnx.export import named_inputs
from compression.nn.inputs import Inputs, map_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compression.deploy.stopwatch import Request


@dataclass(frozen=True)
class Timing:
    """Time and memory of one file in ONNX Runtime."""

    latency_ms: float  # of one example, median; of a decoder with a cache one token
    latency_ms_p95: float  # 95th percentile
    throughput: float  # examples per second, in batches
    peak_memory_mb: float  # MB (1e6 bytes) over the bare runtime's
    backend: str  # runtime, execution provider and number of threads
    # Of decoders with a cache, one text at a time:
    prefill_ms: float | None = None  # a whole window, median
    decode_ms: float | None = None  # one token at the end of a window, median
    tokens_per_second: float | None = None  # of such tokens, on average
    kv_cache_mb: float | None = None  # keys and values of a whole window


def time_files(paths: list[Path], example: Inputs, threads: int, cuda: bool = False) -> list[Timing]:
    """Time the files alternately (A B A B …) in a new process, so that a drift of the machine affects all alike.

    `example` is a prepared batch: its first row gives the latency, all of it the throughput. Raises RuntimeError if
    the process fails.
    """
    with _request(paths, example, threads, cuda) as request:
        timings = _run_stopwatch(request)
        # A process for each file: the peak of resident memory never falls within one.
        peaks = [_run_stopwatch({**request, "files": [str(path)], "memory": True})[0] for path in paths]
    return [Timing(**timing, **peak) for timing, peak in zip(timings, peaks, strict=True)]


def latencies(paths: list[Path], example: Inputs, threads: int) -> list[float]:
    """Return the latency of each file in ms, for the first row of `example`, timed as in `time_files`."""
    with _request(paths, example, threads) as request:
        return [timing["latency_ms"] for timing in _run_stopwatch(request)]


@contextlib.contextmanager
def _request(paths: list[Path], example: Inputs, threads: int, cuda: bool = False) -> Iterator[Request]:
    """Build the stopwatch's request; its inputs are in a temporary file, deleted at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = {n: t.numpy() for n, t in named_inputs(map_inputs(Tensor.cpu, example)).items()}
        np.savez(inputs, **arrays)
        yield {"files": [str(path) for path in paths], "inputs": str(inputs), "threads": threads, "cuda": cuda}


def _run_stopwatch(request: Request) -> list[dict[str, Any]]:
    """Run `deploy.stopwatch` in a new process; a dict of metrics per file. Raises RuntimeError if it fails."""
    process = subprocess.run(
        [sys.executable, "-m", "compression.deploy.stopwatch"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if process.returncode:
        raise RuntimeError(f"The timing process failed: {process.stderr.strip()[-500:]}")
    timings: list[dict[str, Any]] = json.loads(process.stdout)
    return timings
