"""Every image classifier of torchvision through the methods that change its layers: works, refused, or wrong.

    python -m benchmarks.torchvision_networks results.jsonl
    python -m benchmarks.torchvision_networks results.jsonl resnet50 vit_b_32 --steps structured static --timeout 900

appends one line per network and step to the file, leaves out those that are there, and prints the table of all of them;
networks come from small to large. A network is untrained, with batch norms that have seen images, and small images. Of
each network every step has a fresh copy, in a process whose time per step is limited.

"works": the file in ONNX Runtime answers as the compressed model does, which is stored, read back, and answers as
before. The number is the share of the parameters that the step reached (`coverage`), and in brackets how far logits are
from those of the floats (RMS). For `structured` 30% of the channels go, one by one (`round_to=1`): what is left also
trains, and it was tried beforehand that it answers as the whole network in which nothing reads the lost channels. Of
`torch-pruning`, its own pruner on the same network, less is asked: that what is left runs in either mode ("runs").
In brackets are the parameters that went there.

Networks of over 100 M parameters are built with at most 4 equal blocks in a row; the table marks them with *.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch_pruning as tp
from torch import nn
from torchvision import models

from compression import methods
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError, first_line
from compression.models import storage, with_spec
from compression.nn import layers
from compression.nn.inputs import forward
from compression.runs import coverage
from compression.runs.machine import accelerator
from compression.tasks.task import Split, predict
from compression.training.context import Context
from tests.conftest import Kept, kept_child, stripes_task

STEPS = {
    "structured": "structured:sparsity=0.3,target=channels,round_to=1",
    "static": "static",
    "dynamic": "dynamic",
    "magnitude": "magnitude:sparsity=0.5",
    "svd": "svd:rank=ratio,ratio=0.5",
    "tucker": "tucker:rank=ratio,ratio=0.5",
    "torch-pruning": "",
}
SIDES = {"inception_v3": 128, "maxvit_t": 224, "vit_h_14": 56}  # of the images; 64 for all others
LARGE, REPEATS = 100e6, 4
IMAGES = {"train": 32, "validation": 8, "test": 8}


def build(name):
    """The network with statistics of images in its norms, the side of its images, and whether it was shortened."""
    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    options = {"image_size": side} if name.startswith("vit") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, num_classes=10, **options)
    is_large = layers.count_parameters(model) > LARGE
    for module in list(model.modules()) if is_large else []:
        if isinstance(module, nn.Sequential) and len(module) > REPEATS and len({type(m) for m in module}) == 1:
            del module[REPEATS:]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches
    for parameter in model.parameters():
        if not parameter.any():  # a head of zeros would answer alike whatever goes wrong before it
            nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, side, side))
    return model.eval(), side, is_large


def task_of(side):
    """Ten classes of random images: nothing is learned here."""
    generator = torch.Generator().manual_seed(1)

    def split(count):
        images = torch.randn(count, 3, side, side, generator=generator)
        return Split(images, torch.arange(count) % 10, lambda stored: stored)

    splits = {name: split(count) for name, count in IMAGES.items()}
    return stripes_task(**splits, outputs=10, labels=tuple(map(str, range(10))), input_shape=(3, side, side))


def runs(model, side):
    """Raise what `model` raises on two sizes of batches, in eval and training mode, or if its logits are others."""
    with torch.no_grad():
        for train in (False, True):
            for n in (2, 3):
                logits = forward(copy.deepcopy(model).train(train), torch.randn(n, 3, side, side))
                if logits.shape != (n, 10):
                    raise ValueError(f"logits of the shape {tuple(logits.shape)} for {n} images")


def relative(logits, others):
    """RMS of the difference as a share of that of `logits`."""
    return ((logits - others).square().mean() / logits.square().mean()).sqrt().item()


def outcome(name, step):
    """What became of a network: the entries of a row."""
    model, side, _ = build(name)
    if step == "torch-pruning":
        return peer(model, side)
    task = task_of(side)
    original = with_spec(copy.deepcopy(model), task.input_shape, task.example(2))
    [method] = methods.parse(STEPS[step])
    with tempfile.TemporaryDirectory() as folder:
        arguments = (accelerator(True, "no"), Kept(), 0, Path(folder), None, None, kept_child)
        context = Context(task, original, *arguments)
        try:
            made = method.resolved(task).apply(copy.deepcopy(original), context).eval()
        except UserError as error:
            return {"outcome": f"refused: {error}"}
        rows = coverage.rows(coverage.layer_states(original), coverage.layer_states(made))
        if step == "structured":
            runs(made, side)
        file = export(made, task.example(4), Path(folder) / "model.onnx")
        check_parity(made, file, task.test, task, threads=1)
        again = storage.load(storage.save(made, Path(folder) / "stored", {}), like=model)
        logits = predict(made, task.test)[0]
        if (lost := relative(logits, predict(again, task.test)[0])) > 1e-5:
            raise ValueError(f"read back, logits differ by {lost:.1%}")
    reached = sum(row["params"] * row["reached"] for row in rows) / sum(row["params"] for row in rows)
    gone = 1 - layers.count_parameters(made) / layers.count_parameters(original)
    off = relative(predict(model, task.test)[0], logits)
    return {"outcome": "works", "coverage": reached, "off": off, "gone": gone}


def peer(model, side):
    """What torch-pruning's own pruner does."""
    example, cut = torch.randn(1, 3, side, side), copy.deepcopy(model)
    _, last = [(n, m) for n, m in cut.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    try:
        tp.pruner.BasePruner(cut, example, importance, pruning_ratio=0.3, ignored_layers=[last]).step()
        runs(cut, side)
    except Exception as error:  # noqa: BLE001 - whatever it or the network raises is the result
        return {"outcome": f"failed: {type(error).__name__}: {first_line(error)[:60]}"}
    return {"outcome": "runs", "gone": 1 - layers.count_parameters(cut) / layers.count_parameters(model)}


def work(name, steps):
    """Print the row of each step as JSON when it is done."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # torch-pruning prints
        for step in steps:
            began = time.perf_counter()
            try:
                found = outcome(name, step)
            except Exception as error:  # noqa: BLE001 - what is counted
                found = {"outcome": f"WRONG: {type(error).__name__}: {first_line(error)[:200]}"}
            row = {"network": name, "step": step, **found, "seconds": round(time.perf_counter() - began)}
            print(json.dumps(row), file=sys.__stdout__, flush=True)


def rows_apart(name, steps, timeout):
    """Yield the rows of the steps, from processes that may take `timeout` seconds for each."""
    left = list(steps)
    while left:
        command = [sys.executable, "-m", "benchmarks.torchvision_networks", "-", name, "--steps", *left, "--work"]
        late = f"not done in {timeout:g} s"
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout * len(left), check=False, encoding="utf-8"
            )
            output, late = done.stdout, f"WRONG: the process ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode()
        rows = [json.loads(line) for line in output.splitlines()]
        yield from rows
        left = left[len(rows) :]
        if left:  # it hung or died here
            yield {"network": name, "step": left.pop(0), "outcome": late}


def size(name):
    """Parameters of the published network, for the order."""
    return next(iter(models.get_model_weights(name))).meta["num_params"]


def cell(row):
    """A row of the file as a cell of the table."""
    if row is None:
        return ""
    if row["outcome"] == "works":
        beside = f"{row['gone']:.0%}" if row["step"] == "structured" else f"{row['off']:.1%}"
        return f"{row['coverage']:.0%} ({beside})"
    return f"runs ({row['gone']:.0%})" if row["outcome"] == "runs" else re.split(r"[:;(]", row["outcome"])[0]


def table(rows):
    """Print all rows as a table, the counts of each step, and the sentences of those that do not work."""
    found = {(row["network"], row["step"]): row for row in rows}
    names = sorted({row["network"] for row in rows}, key=size)
    print(f"| network | {' | '.join(STEPS)} |\n|---|{'--:|' * len(STEPS)}")
    for name in names:
        star = "*" * (size(name) > LARGE)
        print(f"| {name}{star} | {' | '.join(cell(found.get((name, step))) for step in STEPS)} |")
    for step in STEPS:
        words = Counter(row["outcome"].split(":")[0] for row in rows if row["step"] == step)
        print(f"\n{step}: {', '.join(f'{word} {count}' for word, count in words.items())}", end="")
    print()
    for row in rows:
        if row["outcome"] not in ("works", "runs"):
            print(f"{row['network']}, {row['step']}: {row['outcome']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="JSON lines; those that are there are not tried again")
    parser.add_argument("networks", nargs="*", default=[])
    parser.add_argument("--steps", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a step")
    parser.add_argument("--until", type=float, default=float("inf"), help="minutes after which no network begins")
    parser.add_argument("--work", action="store_true", help="print the rows of one network as JSON")
    given = parser.parse_args()
    if given.work:
        return work(given.networks[0], given.steps)
    results, began = Path(given.results), time.monotonic()
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
    done = {(row["network"], row["step"]) for row in rows}
    for name in given.networks or sorted(models.list_models(module=models), key=size):
        steps = [step for step in given.steps if (name, step) not in done]
        for row in rows_apart(name, steps, given.timeout) if time.monotonic() - began < 60 * given.until else ():
            rows.append(row)
            with results.open("a", encoding="utf-8") as file:
                print(json.dumps(row), file=file)
    return table(rows)


if __name__ == "__main__":
    main()
