"""`python -m compression.deploy.stopwatch`: time ONNX files in a process that loads nothing else.

Reads a `Request` as JSON from standard input and prints a JSON list with the metrics of each file. `deploy.timing`
starts it: torch and the models in the caller's memory would disturb both time and memory.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Literal, NotRequired, TypedDict

import numpy as np
import onnxruntime

from compression.deploy import cache

Kind = Literal["single", "batch"]  # one example at a time, or the whole batch
GENERATED = 32  # tokens at the end of a context, decoded one after another
WARM_UPS = {"single": 5, "batch": 1}
MIN_REPEATS = {"single": 30, "batch": 5}
MAX_REPEATS = 50
MAX_SECONDS = 2.0  # per file and kind, after which no repeat beyond MIN_REPEATS begins


class Request(TypedDict):
    """What to time, and how."""

    files: list[str]  # paths of ONNX files
    inputs: str  # path of an .npz file with a batch of inputs, by name
    threads: int
    cuda: bool  # use the GPU if ONNX Runtime can
    memory: NotRequired[bool]  # measure peak memory, of one file alone, instead of time


def create_session(path: str, threads: int, cuda: bool) -> onnxruntime.InferenceSession:
    """Load an ONNX file to run on the CPU, or with `cuda` on the GPU if there is one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    # Threads spin after a run, to start the next one fast. Here the next run is another file's, which they would slow
    # down: a ResNet-18 of 1.5 ms took 1.9 to 5.9 ms beside a copy of itself on two cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    wanted = ["CUDAExecutionProvider"] if cuda else []
    available = [p for p in wanted if p in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(path, options, providers=[*available, "CPUExecutionProvider"])


def time_alternately(
    sessions: list[onnxruntime.InferenceSession], feeds: dict[str, np.ndarray], kind: Kind
) -> np.ndarray:
    """Run the sessions alternately (A B A B …) and return the seconds of each run, `(repeats, files)`."""
    whole = [cache.with_empty(session, feeds) for session in sessions]
    for session, inputs in zip(sessions, whole, strict=True):
        for _ in range(WARM_UPS[kind]):
            session.run(["logits"], inputs)
    seconds: list[list[float]] = []
    # A deadline for all together, so that every file has as many runs as the others.
    end = time.perf_counter() + MAX_SECONDS * len(sessions)
    while len(seconds) < MIN_REPEATS[kind] or (len(seconds) < MAX_REPEATS and time.perf_counter() < end):
        row = []
        for session, inputs in zip(sessions, whole, strict=True):
            start = time.perf_counter()
            session.run(["logits"], inputs)
            row.append(time.perf_counter() - start)
        seconds.append(row)
    return np.array(seconds)


def measure_latency(request: Request, feeds: dict[str, np.ndarray]) -> list[dict[str, float | str]]:
    """Measure each file's latency (ms per example: median, 95th percentile) and throughput (examples per second)."""
    sessions = [create_session(path, request["threads"], request["cuda"]) for path in request["files"]]
    first = {name: value[:1] for name, value in feeds.items()}
    # Of decoders a step; but a step of one file is not compared with the whole window of another.
    decode = all(cache.empty(session, 1) for session in sessions)
    single = time_decoding(sessions, first["input_ids"]) if decode else time_alternately(sessions, first, "single")
    batch = time_alternately(sessions, feeds, "batch")
    size = len(next(iter(feeds.values())))
    results: list[dict[str, float | str]] = [
        {
            "latency_ms": float(np.median(single[:, i]) * 1e3),
            "latency_ms_p95": float(np.percentile(single[:, i], 95) * 1e3),
            "throughput": float(size / np.median(batch[:, i])),
            "backend": f"onnxruntime {onnxruntime.__version__} {s.get_providers()[0]}, {request['threads']} threads",
        }
        for i, s in enumerate(sessions)
    ]
    if decode:
        prefill = time_alternately(sessions, first, "batch")
        for i, session in enumerate(sessions):
            results[i] |= {
                "prefill_ms": float(np.median(prefill[:, i]) * 1e3),
                "decode_ms": float(np.median(single[:, i]) * 1e3),
                "tokens_per_second": float(1 / np.mean(single[:, i])),
                "kv_cache_mb": cache.token_bytes(session) * first["input_ids"].shape[1] / 1e6,
            }
    return results


def time_decoding(sessions: list[onnxruntime.InferenceSession], ids: np.ndarray) -> np.ndarray:
    """Let the sessions decode greedily in turn (A B A B …); the seconds of each token, `(tokens, files)`.

    They begin after the window `ids` `(1, length)` less the `GENERATED` tokens that then fill it, and again as often as
    `MIN_REPEATS` and the time allow. Choosing the likeliest token and passing the cache on are counted.
    """
    count = min(GENERATED, ids.shape[1] - 1)
    seconds: list[list[float]] = []
    end = time.perf_counter() + MAX_SECONDS * len(sessions)
    started = [cache.step(session, ids[:, :-count], cache.empty(session, 1)) for session in sessions]
    for session, (logits, past) in zip(sessions, started, strict=True):
        for _ in range(WARM_UPS["single"]):
            cache.step(session, logits[:, -1:].argmax(-1), past)
    while len(seconds) < MIN_REPEATS["single"] or (len(seconds) < MAX_REPEATS and time.perf_counter() < end):
        states = list(started)
        for _ in range(count):
            row = []
            for i, session in enumerate(sessions):
                start = time.perf_counter()
                logits, past = states[i]
                states[i] = cache.step(session, logits[:, -1:].argmax(-1), past)
                row.append(time.perf_counter() - start)
            seconds.append(row)
    return np.array(seconds)


def resident_mb(field: str) -> float:
    """Read this process's resident memory in MB (1e6 bytes) from Linux: `VmRSS` is the current, `VmHWM` the peak."""
    with open("/proc/self/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def measure_peak_memory(request: Request, feeds: dict[str, np.ndarray]) -> list[dict[str, float | str]]:
    """Measure how far loading the first file and running one batch raises memory over the bare runtime's, in MB."""
    before = resident_mb("VmRSS")
    session = create_session(request["files"][0], request["threads"], request["cuda"])
    session.run(["logits"], cache.with_empty(session, feeds))
    return [{"peak_memory_mb": resident_mb("VmHWM") - before}]


if __name__ == "__main__":
    request: Request = json.load(sys.stdin)
    measure = measure_peak_memory if request.get("memory") else measure_latency
    json.dump(measure(request, dict(np.load(request["inputs"]))), sys.stdout)
