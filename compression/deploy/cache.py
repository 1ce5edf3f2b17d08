"""The cache of a decoder's ONNX file: keys and values of the tokens so far, inputs and outputs of each step.

Without torch, for `deploy.stopwatch`. The tokens of a batch are all real ones: texts of unequal length are not padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

PAST, PRESENT = "past_key_values", "present"  # as optimum and onnxruntime-genai name them
PARTS = ("key", "value")
Cache = dict[str, np.ndarray]  # by the names of inputs, `(batch, heads, tokens so far, size)` each


def input_name(i: int) -> str:
    """Return the name of the i-th input of the cache: keys and values of one layer after another."""
    return f"{PAST}.{i // 2}.{PARTS[i % 2]}"


def output_name(i: int) -> str:
    """Return the name of the i-th output of the cache."""
    return f"{PRESENT}.{i // 2}.{PARTS[i % 2]}"


def empty(session: onnxruntime.InferenceSession, batch: int) -> Cache:
    """Return the cache before the first token of `batch` texts, `(batch, heads, 0, size)`; no entry for other files."""
    shapes = {given.name: given.shape for given in session.get_inputs() if given.name.startswith(f"{PAST}.")}
    return {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}


def with_empty(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `feeds`, a batch of examples by the names of inputs, with the cache before their first tokens."""
    return {**feeds, **empty(session, len(next(iter(feeds.values()))))}


def step(session: onnxruntime.InferenceSession, ids: np.ndarray, past: Cache) -> tuple[np.ndarray, Cache]:
    """Read the tokens `ids` `(batch, length)` after those of `past`; the logits, and the cache with these tokens."""
    outputs = ["logits", *(output_name(i) for i in range(len(past)))]
    logits, *kept = session.run(outputs, {"input_ids": ids, **past})
    return logits, {input_name(i): values for i, values in enumerate(kept)}


def token_bytes(session: onnxruntime.InferenceSession) -> int:
    """Return the bytes that the cache of one text grows by with every token."""
    return sum(values.shape[1] * values.shape[3] * values.itemsize for values in empty(session, 1).values())
