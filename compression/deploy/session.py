"""Run an ONNX file in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.deploy.onnx.export import named_inputs
from compression.nn.inputs import Inputs, map_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from compression.tasks.task import Split


class Session:
    """An ONNX Runtime session on `threads` threads."""

    def __init__(self, path: Path, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3  # 3: errors only
        self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the logits `(batch, outputs)` of a prepared batch, on the CPU."""
        feeds = {name: t.numpy() for name, t in named_inputs(map_inputs(Tensor.cpu, inputs)).items()}
        return torch.from_numpy(self.session.run(["logits"], feeds)[0])

    def predict(self, split: Split, batch_size: int = 500) -> Tensor:
        """Return the logits `(n, outputs)` of a whole split."""
        return torch.cat([self(inputs) for inputs, _ in split.to("cpu").batches(batch_size)])
