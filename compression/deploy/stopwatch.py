"""`python -m compression.deploy.stopwatch`: times ONNX files in a process that holds nothing else.

Reads one JSON order from standard input and prints one JSON list, an entry a file. `deploy.timing` is its caller.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

WARM_UP = 5
REPEATS = 50  # at most; at least 30 single runs, 5 batches
AT_LEAST = {"single": 30, "batch": 5}
SECONDS = 2.0  # per file and kind of run, once the least number of repeats is done


def session(path: str, order: dict[str, Any]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = (
        order["threads"],
        1,
        3,
    )
    # Threads spin on after a run, to be quick at the next; here that is another file's, which they would slow down:
    # a ResNet-18 of 1.5 ms took from 1.9 to 5.9 beside itself on two cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    wanted = ["CUDAExecutionProvider"] if order["cuda"] else []
    available = [p for p in wanted if p in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(path, options, providers=[*available, "CPUExecutionProvider"])


def alternate(sessions: list[onnxruntime.InferenceSession], feeds: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Seconds `(repeats, files)` of running each session in turn."""
    for s in sessions:
        for _ in range(WARM_UP if kind == "single" else 1):
            s.run(None, feeds)
    seconds: list[list[float]] = []
    begun = time.perf_counter()
    while len(seconds) < AT_LEAST[kind] or (
        len(seconds) < REPEATS and time.perf_counter() - begun < SECONDS * len(sessions)
    ):
        row = []
        for s in sessions:
            start = time.perf_counter()
            s.run(None, feeds)
            row.append(time.perf_counter() - start)
        seconds.append(row)
    return np.array(seconds)


def timings(order: dict[str, Any], feeds: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    sessions = [session(path, order) for path in order["files"]]
    single = alternate(sessions, {name: value[:1] for name, value in feeds.items()}, "single")
    batch = alternate(sessions, feeds, "batch")
    size = len(next(iter(feeds.values())))
    return [
        {
            "latency_ms": float(np.median(single[:, i]) * 1e3),
            "latency_ms_p95": float(np.percentile(single[:, i], 95) * 1e3),
            "throughput": float(size / np.median(batch[:, i])),
            "backend": f"onnxruntime {onnxruntime.__version__} {s.get_providers()[0]}, {order['threads']} threads",
        }
        for i, s in enumerate(sessions)
    ]


def resident_mb(field: str) -> float:
    """A memory figure of this process from the kernel, in MB: VmRSS now, VmHWM at its highest."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def peak(order: dict[str, Any], feeds: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """How far loading the file and answering one batch raised this process's memory above the bare runtime."""
    before = resident_mb("VmRSS")
    session(order["files"][0], order).run(None, feeds)
    return [{"peak_memory_mb": resident_mb("VmHWM") - before}]


if __name__ == "__main__":
    given = json.load(sys.stdin)
    inputs = dict(np.load(given["inputs"]))
    json.dump((peak if given.get("memory") else timings)(given, inputs), sys.stdout)
