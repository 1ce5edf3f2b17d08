"""An ONNX file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from compression.deploy.onnx.export import named
from compression.nn.inputs import Inputs, map_inputs
from compression.tasks.task import Split


class Session:
    """An ONNX Runtime session on `threads` threads: `session(inputs)` gives the logits."""

    def __init__(self, path: Path, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))

    def __call__(self, inputs: Inputs) -> Tensor:
        feeds = {name: t.numpy() for name, t in named(map_inputs(Tensor.cpu, inputs)).items()}
        return torch.from_numpy(self.session.run(["logits"], feeds)[0])

    def predict(self, split: Split, batch_size: int = 500) -> Tensor:
        """Logits `(n, outputs)` of a whole split."""
        return torch.cat([self(inputs) for inputs, _ in split.to("cpu").batches(batch_size)])
