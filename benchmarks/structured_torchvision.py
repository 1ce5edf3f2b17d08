"""`structured` on every classifier of torchvision, beside torch-pruning's own pruner on the same networks.

    python benchmarks/structured_torchvision.py
    python benchmarks/structured_torchvision.py resnet50 swin_t --sparsity 0.5 --timeout 900

Each network is untrained, takes small images, and loses 30% of its channels, those with the smallest l1 norm, one by
one (`round_to=1`), in a process of its own. "works" means that the rest runs in eval and training mode on two sizes of
batches, with as many logits as before, and that it answers as the whole network in which nothing reads the lost
channels (`structured` tries that before it cuts). Of torch-pruning's pruner the same is asked but for the answers: it
gets the layers with the logits as `ignored_layers`. Shares are what went of the channels, parameters and MACs.

Networks of over 100 M parameters are built with at most 4 equal blocks in a row; the table marks them with *.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from types import SimpleNamespace

import torch
import torch_pruning as tp
from torch import nn
from torchvision import models

from compression import methods
from compression.errors import UserError, first_line
from compression.methods.prune.structure.costs import count_operations
from compression.nn import layers
from compression.nn.inputs import forward

SIDES = {"inception_v3": 128, "maxvit_t": 224, "vit_h_14": 56}  # of the images; 64 for all others
LARGE, REPEATS = 100e6, 4


def build(name):
    """The network, the side of its images, and whether it was shortened."""
    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    options = {"image_size": side} if name.startswith("vit") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, num_classes=10, **options)
    is_large = layers.count_parameters(model) > LARGE
    for module in list(model.modules()) if is_large else []:
        if isinstance(module, nn.Sequential) and len(module) > REPEATS and len({type(m) for m in module}) == 1:
            del module[REPEATS:]
    return model.eval(), side, is_large


def runs(model, side):
    """Raise what `model` raises on two sizes of batches, in eval and training mode, or if its logits are others."""
    with torch.no_grad():
        for train in (False, True):
            for n in (2, 3):
                logits = forward(copy.deepcopy(model).train(train), torch.randn(n, 3, side, side))
                if logits.shape != (n, 10):
                    raise ValueError(f"logits of the shape {tuple(logits.shape)} for {n} images")


def shares(before, after, example, units):
    """What went of the channels, the parameters and the MACs, in percent."""
    costs = (units.count, layers.count_parameters, lambda m: count_operations(m, example))
    return [f"{100 - 100 * cost(after) / cost(before):.0f}" for cost in costs]


def ours(model, side, sparsity):
    """What `structured` does to a copy: a word or a sentence, the shares, the units, and seconds."""
    example, context = torch.randn(1, 3, side, side), SimpleNamespace(record=SimpleNamespace(warn=print), seed=0)
    step = methods.build("structured", {"sparsity": str(sparsity), "target": "channels", "round_to": "1"})
    cut, began, units = copy.deepcopy(model), time.perf_counter(), None
    try:
        units = step.removable_units(cut, example)
        step.require_reachable(cut, units)
        step.remove_units(cut, units, context)
        runs(cut, side)
    except UserError as error:
        return f"refused: {error}", ["", "", ""], units, time.perf_counter() - began
    return "works", shares(model, cut, example, units), units, time.perf_counter() - began


def theirs(model, side, sparsity, units):
    """What torch-pruning's pruner does to a copy: a word or its error, and the shares."""
    example, cut = torch.randn(1, 3, side, side), copy.deepcopy(model)
    ignored = [cut.get_submodule(name) for name in units.outputs] if units else [cut.get_submodule("fc")]
    try:
        importance = tp.importance.GroupMagnitudeImportance(p=1)
        tp.pruner.BasePruner(cut, example, importance, pruning_ratio=sparsity, ignored_layers=ignored).step()
        runs(cut, side)
    except Exception as error:  # noqa: BLE001 - whatever it or the network raises is the result
        return f"{type(error).__name__}: {first_line(error)[:60]}", ["", "", ""]
    return "runs", shares(model, cut, example, units) if units else ["", "", ""]


def row(name, sparsity):
    """Yield the parts of one network's row: what `structured` does, and what torch-pruning's pruner does."""
    model, side, is_large = build(name)
    found, went, units, seconds = ours(model, side, sparsity)
    yield {
        "network": name + "*" * is_large,
        "params, M": f"{layers.count_parameters(model) / 1e6:.1f}",
        "structured": found,
        "channels / params / MACs gone, %": " / ".join(went),
        "layers left alone": f"{len(units.untouched)} of {len(units.sizes(model)) - len(units.outputs)}"
        if units
        else "",
        "seconds": f"{seconds:.0f}",
    }
    other, went = theirs(model, side, sparsity, units)
    yield {"torch-pruning": other, "gone, %": " / ".join(went)}


def row_apart(name, sparsity, timeout):
    """The row, from a process of its own that may take `timeout` seconds for both parts."""
    command = [sys.executable, __file__, name, "--sparsity", str(sparsity), "--row"]
    late = f"not done in {timeout:g} s"
    made = {"network": name, "structured": late, "torch-pruning": late}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        output = done.stdout
        if done.returncode:
            made["structured"] = made["torch-pruning"] = f"FAILED: {done.stderr.strip().splitlines()[-1][:120]}"
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode()
    for line in output.splitlines():
        made |= json.loads(line)
    return made


COLUMNS = ("network", "params, M", "structured", "channels / params / MACs gone, %", "layers left alone", "seconds")
COLUMNS += ("torch-pruning", "gone, %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=models.list_models(module=models))
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--row", action="store_true", help="print the row of one network as JSON")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.row:
        with contextlib.redirect_stdout(sys.stderr):  # torch-pruning prints
            for part in row(given.networks[0], given.sparsity):
                print(json.dumps(part), file=sys.__stdout__, flush=True)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    words = Counter()
    for name in given.networks:
        made = row_apart(name, given.sparsity, given.timeout)
        words[made["structured"].split(":")[0]] += 1
        print(f"| {' | '.join(made.get(column, '') for column in COLUMNS)} |", flush=True)
    print(f"\n{', '.join(f'{word}: {count}' for word, count in words.items())}")


if __name__ == "__main__":
    main()
