"""Our static quantization beside ONNX Runtime's own: latency, quality and file size, the same calibration data.

    python benchmarks/quantize_deployed.py resnet20 resnet56 resnet18 --threads 2
    python benchmarks/quantize_deployed.py --baseline runs:/… --task cifar10 resnet20
    python benchmarks/quantize_deployed.py --task glue/sst2 PATH_OF_A_BERT
    python benchmarks/quantize_deployed.py --task glue/sst2 --step dynamic --baseline FOLDER_OF_AN_LSTM PATH_OF_ITS_BERT

Beside `dynamic` stands ONNX Runtime's own dynamic quantizer, beside all others its static one.

Ours is timed in turn with each of the others, two files at a time in a new process, for the sessions of more would wait
for each other's threads: milliseconds and ratios are medians of the rounds.

Without a baseline the weights are untrained (after a few batches through the batch norms): good for latency and size,
and the quality column then says how often the integers answer as the floats do.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compression import methods, models, tasks
from compression.deploy.onnx.export import export, named_inputs
from compression.deploy.session import Session
from compression.deploy.timing import time_files
from compression.methods.quantize.calibration.activations import calibration_batches
from compression.methods.quantize.dynamic import Dynamic
from compression.models import storage
from compression.nn.inputs import forward
from compression.runs.machine import accelerator
from compression.training.context import Context


class Reader(CalibrationDataReader):
    """The calibration batches as ONNX Runtime wants them."""

    def __init__(self, data):
        self.rest = iter({name: t.numpy() for name, t in named_inputs(inputs).items()} for inputs in data)

    def get_next(self):
        return next(self.rest, None)


def theirs(fp32, step, data, folder, **options):
    """The file that ONNX Runtime's quantizer makes of the float file, prepared as its documentation says."""
    prepared, made = folder / "prepared.onnx", folder / "theirs.onnx"
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    if isinstance(step, Dynamic):
        quantize_dynamic(str(prepared), str(made), weight_type=QuantType.QInt8, **options)
        return made
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(prepared), str(made), Reader(data), quant_format=QuantFormat.QDQ, **types, **options)
    return made


def answers(file, task, threads):
    session = Session(file, threads)
    return torch.cat([session(inputs) for inputs, _ in task.test.batches(500)])


def settled(model, task):
    """Untrained, but with batch norms that have seen data."""
    model.train()
    with torch.no_grad():
        for inputs, _ in list(task.train.select(torch.arange(min(512, len(task.train)))).batches(64)):
            forward(model, inputs)
    return model.eval()


def timed(file, ours, example, threads, rounds):
    """Milliseconds of `file` for one example and for a batch, and what ours takes of them, from least to most.

    A round takes both orders: the second of two files is often a sixth faster with one small example.
    """
    found = {}
    first = [time_files([file, ours], example, threads) for _ in range(rounds)]
    second = [time_files([ours, file], example, threads)[::-1] for _ in range(rounds)]
    for size, milliseconds in {1: lambda t: t.latency_ms, 32: lambda t: 32e3 / t.throughput}.items():
        theirs, own = np.array([[[milliseconds(t) for t in pair] for pair in order] for order in (first, second)]).T
        ratio = np.sqrt((own / theirs).prod(1))
        found[f"{size}: ms"] = np.median(theirs)
        found[f"{size}: ours / it"] = f"{np.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
    return found


def compare(model, task, step, threads, folder, rounds):
    """A row for the float file, for ONNX Runtime's two usual settings, and for ours."""
    record = SimpleNamespace(figure=lambda *_: None, warn=print, table=lambda *_: None)
    context = Context(task, model, accelerator(True, "no"), record, 0, folder, None, None, None)
    data = [] if isinstance(step, Dynamic) else calibration_batches(context, step.calibration_samples)
    files = {"float32": export(model, task.example(4), folder / "float32.onnx")}
    for name, options in {
        "onnxruntime": {},
        "onnxruntime per channel, reduced": {"per_channel": True, "reduce_range": True},
    }.items():
        files[name] = theirs(files["float32"], step, data, folder, **options).rename(folder / f"{len(files)}.onnx")
    ours = step.apply(copy.deepcopy(model), context)
    files["ours"] = export(ours, task.example(4), folder / "ours.onnx")
    logits = {name: answers(file, task, threads) for name, file in files.items()}
    right = logits["float32"].argmax(1)
    times = {
        name: timed(file, files["ours"], task.example(32), threads, rounds)
        for name, file in files.items()
        if name != "ours"
    }
    return [
        {
            "file": name,
            **times.get(name, {}),
            "size_mb": file.stat().st_size / 1e6,
            "agreement": (logits[name].argmax(1) == right).float().mean().item(),
            **task.compute_metrics(logits[name], task.test.targets),
        }
        for name, file in files.items()
    ]


def table(name, rows):
    columns = list(rows[0])
    print(f"\n{name}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        values = [row.get(column, "") for column in columns]
        cells = [f"{v:.3f}" if isinstance(v, float | np.floating) else str(v) for v in values]
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--task", default="cifar10")
    parser.add_argument("--baseline", default="", help="folder of the trained model, as a run's artifact `model`")
    parser.add_argument("--step", default="static", help="the step to compare, as in a chain")
    parser.add_argument("--limit", type=int, default=None, help="use only so many examples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    [step] = methods.parse(given.step)
    for name in given.models:
        task = tasks.load(given.task, limit=given.limit, model=name)
        model = storage.load(Path(given.baseline)) if given.baseline else settled(models.build(name, task), task)
        with tempfile.TemporaryDirectory() as folder:
            table(name, compare(model.eval(), task, step, given.threads, Path(folder), given.rounds))


if __name__ == "__main__":
    main()
