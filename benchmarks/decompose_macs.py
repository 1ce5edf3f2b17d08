"""The MACs that AlexNet, VGG-16 and ResNet-50 are left with at 224x224, beside the figures of the published work.

    python benchmarks/decompose_macs.py
    python benchmarks/decompose_macs.py resnet50 --weights FILE --steps tucker:rank=evbmf,round_to=16,skip={first}

Decompose-CNN (github.com/ruihangdu/Decompose-CNN) decomposes the convolutions larger than 1x1 but for the first, by
Tucker with EVBMF's ranks rounded up to multiples of 16, and counts operations (2 x MACs) of convolutions alone: AlexNet
1.31 -> 0.45, ResNet-50 7.0 -> 4.7 GFLOPs, both after fine-tuning. Kim et al. 2016 report VGG-16 at 1/4.93 of its MACs.

Without --weights (a state dict of torchvision's) the networks are untrained. EVBMF then sees noise, so its row says
nothing of theirs; the other rows hold for any weights as far as MACs and parameters go, their errors do not.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from compression import methods, models
from compression.nn import layers

FIRST = {"alexnet": "features.0", "vgg16": "features.0", "resnet50": "conv1"}
PUBLISHED = {"alexnet": 0.45 / 1.31, "vgg16": 1 / 4.93, "resnet50": 4.7 / 7.0}  # of the convolutions' operations
STEPS = (
    "tucker:rank=evbmf,round_to=16,skip={first}",
    "tucker:rank=ratio,ratio=0.5,round_to=16,skip={first}",
    "tucker:rank=energy,energy=0.7,round_to=16,skip={first}",
    "tucker:rank=macs,target={target:.4f},round_to=1,skip={first}",  # to where they came
)


def built(name, weights):
    torch.manual_seed(0)
    model = models.rebuild(
        {"builder": name, "arguments": {"outputs": 1000, "input_shape": [3, 224, 224], "width": 1.0}}
    )
    if weights:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def counted(model, example):
    """GFLOPs of the convolutions as they count, MACs of the whole, parameters in millions."""
    macs = layers.count_macs(model, example)
    inside = sum(macs[name] for name, layer in layers.prunable_layers(model).items() if isinstance(layer, nn.Conv2d))
    return 2 * inside / 1e9, sum(macs.values()) / 1e9, layers.count_parameters(model) / 1e6


def row(name, text, weights, example):
    """One network after one step."""
    model, found = built(name, weights), {}
    convolutions, macs, params = counted(model, example)
    whole = (convolutions / 2 * PUBLISHED[name] + macs - convolutions / 2) / macs  # the target, of all the MACs
    [step] = methods.parse(text.format(first=FIRST[name], target=whole))
    task = SimpleNamespace(example=lambda n=1: example)
    record = SimpleNamespace(figure=lambda *_: None, table=found.setdefault, warn=partial(print, file=sys.stderr))
    began = time.perf_counter()
    model = step.apply(model, SimpleNamespace(task=task, record=record, device=torch.device("cpu"), seed=0))
    seconds, after = time.perf_counter() - began, counted(model, example)
    changed = [r["error"] for r in found["decomposition"] if r["error"]]
    return {
        "network": name,
        "step": methods.text([step]),
        "convolutions, GFLOPs": f"{convolutions:.2f} -> {after[0]:.2f}",
        "left": f"{after[0] / convolutions:.2f}",
        "published": f"{PUBLISHED[name]:.2f}",
        "GMACs": f"{macs:.2f} -> {after[1]:.2f}",
        "parameters, M": f"{params:.1f} -> {after[2]:.1f}",
        "layers": len(changed),
        "error": f"{sum(changed) / max(1, len(changed)):.2f}",
        "seconds": f"{seconds:.0f}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(FIRST))
    parser.add_argument("--weights", default="", help="a state dict of torchvision's, of the one network that is named")
    parser.add_argument("--steps", nargs="*", default=STEPS)
    given = parser.parse_args()
    print(
        f"Weights: {given.weights or 'untrained: what EVBMF chooses and the errors say nothing of trained networks'}\n"
    )
    example, headed = torch.zeros(1, 3, 224, 224), False
    for name in given.networks:
        for text in given.steps:
            made = row(name, text, given.weights, example)
            if not headed:
                print(f"| {' | '.join(made)} |\n|{'---|' * len(made)}")
            headed = True
            print(f"| {' | '.join(map(str, made.values()))} |", flush=True)


if __name__ == "__main__":
    main()
