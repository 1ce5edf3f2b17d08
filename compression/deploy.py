"""The deployed form of a model: an ONNX file, run by ONNX Runtime, held against the torch model it came from."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compression.errors import UserError, first_line
from compression.quantized.deployed import deployable
from compression.quantized.functions import define_functions
from compression.quantized.onnx_numbers import OPSET
from compression.tasks.task import Inputs, Split, forward, map_inputs, predict

# Beyond these the export is wrong, not rounded otherwise: share of equal predictions, and root mean square of the
# logits' difference over that of the logits (predictions alone say nothing of a model that answers one class).
LEAST_AGREEMENT, LARGEST_DIFFERENCE = 0.998, 0.1
# An answer ties with the model's own where its logit falls behind by less than this many root mean squares of the
# difference: in integers the last bit of a float becomes a whole step here and there, and logits have a noise.
TIE = 4.0


class _Logits(nn.Module):
    """The model reduced to named inputs and one output, which is what the file holds."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        given: Inputs = inputs[0] if self.names == ["images"] else dict(zip(self.names, inputs, strict=True))
        return forward(self.model, given)


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Model inputs under the names they have in the file: one tensor is called `images`."""
    return inputs if isinstance(inputs, dict) else {"images": inputs}


def export(model: nn.Module, example: Inputs, path: Path) -> Path:
    """Write `model` as ONNX with batch (and, for text, length) left open; weights inside the file.

    `example` is a prepared batch of at least 2 on the CPU. Raises UserError where torch cannot export the model.
    """
    tensors = named(example)
    dims: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    text = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = [text if isinstance(example, dict) and t.ndim == 2 else dims for t in tensors.values()]
    wrapped = _Logits(deployable(copy.deepcopy(model).cpu().eval()), list(tensors))
    with quiet():
        try:
            program = torch.onnx.export(
                wrapped,
                tuple(tensors.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(tensors),
                output_names=["logits"],
                dynamic_shapes=(tuple(shapes),),
                verbose=False,
            )
            assert program is not None
            define_functions(program)
            _unfuse_gelu(program.model)
            path.write_bytes(_bare(program))
        except (torch.onnx.OnnxExporterError, RuntimeError, OSError) as error:
            path.unlink(missing_ok=True)
            raise UserError(f"The model could not be written as ONNX: {first_line(error)}") from error
    return path


def _unfuse_gelu(model: Any) -> None:
    """Make biases before a Gelu matrices of one row: ONNX Runtime would fuse vectors into BiasGelu, which is slower
    than an addition and a Gelu (benchmarks/README.md)."""
    import onnx_ir as ir

    for node in model.graph:
        before = node.inputs[0].producer() if node.op_type == "Gelu" and node.inputs[0] is not None else None
        if before is None or before.op_type != "Add":
            continue
        for bias in before.inputs:
            if bias is not None and bias.is_initializer() and len(bias.uses()) == 1 and bias.shape.rank() == 1:
                bias.const_value = ir.tensor(bias.const_value.numpy()[None], name=bias.name)
                bias.shape = bias.const_value.shape


def _bare(program: torch.onnx.ONNXProgram) -> bytes:
    """The file without what no runtime reads: traces of our source code and the shapes in between, often 100 kB."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    del proto.graph.value_info[:]
    return proto.SerializeToString()


@contextlib.contextmanager
def quiet():
    """Keep the exporter's chatter off the terminal; errors still come as exceptions."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


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


@dataclass(frozen=True)
class Parity:
    """How far the file is from the torch model: largest difference of a logit, share of equal predictions."""

    max_difference: float
    agreement: float
    quality: dict[str, float]  # the task's metrics, as the file answers
    logits: Tensor  # (n, outputs), as the torch model answers
    targets: Tensor


def parity(model: nn.Module, path: Path, split: Split, metrics: Any, threads: int) -> Parity:
    """Compare file and model on `split`; UserError if their predictions are not the same ones."""
    ours, targets = predict(model, split)
    theirs = Session(path, threads).predict(split)
    agreement = _agreeing(ours, theirs).float().mean().item()
    found = Parity((ours - theirs).abs().max().item(), agreement, metrics(theirs, targets), ours, targets)
    relative = ((ours - theirs).square().mean() / ours.square().mean().clamp_min(1e-12)).sqrt().item()
    if len(targets) * (1 - agreement) > most_wrong(len(targets)) or relative > LARGEST_DIFFERENCE:
        raise UserError(
            f"The ONNX file answers otherwise than the model on {1 - found.agreement:.1%} of the examples "
            f"(logits differ by up to {found.max_difference:.3g}): it is not deployable as it is."
        )
    return found


def most_wrong(count: int) -> float:
    """Answers of `count` that may differ: a share of 1 - LEAST_AGREEMENT, and twice the deviation of such a count."""
    expected = (1 - LEAST_AGREEMENT) * count
    return expected + 2 * math.sqrt(expected)


def _agreeing(ours: Tensor, theirs: Tensor) -> Tensor:
    """Where the answers `(n, outputs)` are the same; an answer that ties with the model's own is."""
    if ours.shape[1] == 1:
        return torch.isclose(ours, theirs, atol=0.05, rtol=0.05)
    lost = ours.amax(1) - ours.gather(1, theirs.argmax(1, keepdim=True)).squeeze(1)
    return lost <= TIE * (ours - theirs).square().mean().sqrt()


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
        [sys.executable, "-m", "compression.stopwatch"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"The timing process failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)
