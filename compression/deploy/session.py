"""Run an ONNX file in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.deploy import cache
from compression.deploy.onnx.export import named_inputs
from compression.nn.inputs import Inputs, map_inputs

if TYPE_CHECKING:
    from pathlib import Path


class Session:
    """An ONNX Runtime session on `threads` threads."""

    def __init__(self, path: Path, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3  # 3: errors only
        self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the logits of a prepared batch, as `nn.inputs.forward` does, on the CPU."""
        feeds = {name: t.numpy() for name, t in named_inputs(map_inputs(Tensor.cpu, inputs)).items()}
        return torch.from_numpy(self.session.run(["logits"], cache.with_empty(self.session, feeds))[0])

    @property
    def has_cache(self) -> bool:
        """Whether the file takes and gives keys and values."""
        return bool(self.empty_cache(1))

    def empty_cache(self, batch: int) -> cache.Cache:
        """Return the cache before the first token of `batch` texts; without entries for a file that has none."""
        return cache.empty(self.session, batch)

    def step(self, ids: Tensor, past: cache.Cache) -> tuple[Tensor, cache.Cache]:
        """Read the tokens `ids` `(batch, length)` after those in `past`: their logits, and the cache with them."""
        logits, kept = cache.step(self.session, ids.numpy(), past)
        return torch.from_numpy(logits), kept
