"""Methods, one-shot or after a recovery, on networks that somebody else has trained: akamaster's ResNets for CIFAR-10.

    COMPRESSION_DATA=PATH python benchmarks/trained_networks.py WEIGHTS.safetensors "static:bits=4" "wanda:sparsity=0.5"

WEIGHTS are those of github.com/akamaster/pytorch_resnet_cifar10 under its tensor names; PATH holds
`cifar10-original-pixels`, some of the original training images in parquet, to calibrate and to recover on, and
`cifar10`, the JPEG copy of CIFAR-10, of whose test images the first 2,000 are measured on: they cost the network 10
points, and it has not seen them. `agreement` is the share of them on which the compressed network chooses the class
that the network chose: one standard error is 0.5 points at 95%, and 0.9 at 80%.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import compression as lab
from compression.tasks.task import predict

TESTED = 2_000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters: every other pixel, and channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        if self.padding:
            images = F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(hidden + images)


class ResNet(nn.Module):
    """6n + 2 layers, under the tensor names of akamaster's networks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            blocks = [
                Block(widths[stage - (i == 0)], widths[stage], 2 if stage > 1 and i == 0 else 1) for i in range(depth)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(hidden.mean((2, 3)))


def load_network(path: Path) -> nn.Module:
    weights = load_file(path)
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layer1."))
    network = ResNet(depth)
    missing = network.load_state_dict(weights, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.eval()


def read_images(folder: str, pattern: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The images of a parquet file, normalised as the networks take them, and their labels."""
    file = next(Path(os.environ["COMPRESSION_DATA"], folder).rglob(pattern))
    table = pyarrow.parquet.read_table(file).slice(0, limit)
    pictures = [np.asarray(Image.open(io.BytesIO(each["bytes"]))) for each in table[table.column_names[0]].to_pylist()]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return images, torch.tensor(table[table.column_names[1]].to_pylist())


def load_task():
    images, labels = read_images("cifar10-original-pixels", "train*.parquet")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    validation, train = ((images[part], labels[part]) for part in (order[:500], order[500:]))
    test = read_images("cifar10", "test*.parquet", TESTED)
    return lab.task(train=train, validation=validation, test=test, classes=[str(i) for i in range(10)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("recipe", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    task, network = load_task(), load_network(args.weights)
    expected = predict(network, task.test)[0].argmax(1)
    accuracy = (expected == predict(network, task.test)[1]).float().mean()
    print(f"{args.weights.stem}: {accuracy:.1%} of {TESTED:,} images of the JPEG copy")
    print("| recipe | agreement | accuracy | size_mb | latency_ms, before and after | macs_ratio | seconds |")
    for recipe in args.recipe:
        start = time.perf_counter()
        result = lab.compress(network, recipe, task, seed=args.seed, threads=1)
        seconds = time.perf_counter() - start
        logits, labels = predict(result.model, task.test)
        found, m = logits.argmax(1), result.figures
        print(
            f"| `{recipe}` | {(found == expected).float().mean():.1%} | {(found == labels).float().mean():.1%} | "
            f"{m['size_mb']:.3f} | {m['latency_ms_before']:.2f}, {m['latency_ms']:.2f} | {m['macs_ratio']:.2f} | "
            f"{seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
