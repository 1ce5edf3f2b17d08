"""Images per second of the lab's `fit` against the usual loop over a torchvision-transforms DataLoader, ResNet-20.

    python benchmarks/fit_throughput.py [--batches 40] [--rounds 3] [--workers 2]

The two are timed in turn, round by round, on the same made-up CIFAR-sized images; both flip and crop. Each trains two
epochs, and the second counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import click
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from compression import models
from compression.runs.machine import prepare
from compression.runs.settings import Settings
from compression.tasks import cifar10
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.task import Split, Task
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import decay_groups, fit, make_optimizer

TRAINING = Training(epochs=2, batch_size=128, learning_rate=0.1, optimizer="sgd", schedule="constant", keep="last")


class Images(Dataset):
    """The usual way: a PIL image at a time through torchvision's transforms."""

    def __init__(self, images: Tensor, targets: Tensor):
        self.images, self.targets = [Image.fromarray(i) for i in images.permute(0, 2, 3, 1).numpy()], targets
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.targets[index]


def network() -> nn.Module:
    torch.manual_seed(0)
    return models.rebuild(
        {"builder": "resnet20", "arguments": {"outputs": 10, "input_shape": [3, 32, 32], "width": 1.0}}
    )


def made_up(images: Tensor, targets: Tensor) -> Task:
    """A task of these images, with next to nothing to validate on."""
    train = Split(images, targets, cifar10.prepare)
    few = train.select(torch.arange(2))
    names = {"name": "made-up", "labels": cifar10.LABELS, "metric": "accuracy", "model": "resnet20", "student": ""}
    return Task(
        **names,
        train=train,
        validation=few,
        test=few,
        outputs=10,
        compute_metrics=accuracy,
        loss=cross_entropy,
        training={},
        input_shape=(3, 32, 32),
        augment=cifar10.augment,
    )


def ours(images: Tensor, targets: Tensor, threads: int) -> float:
    """Images per second of the second epoch of `fit`."""
    seconds: list[float] = []
    record = SimpleNamespace(metrics=lambda values, step: seconds.append(values["epoch_seconds"]), warn=print)
    model, machine = network(), prepare(Settings(threads=threads))
    with tempfile.TemporaryDirectory() as folder:
        named = dict.fromkeys(("load", "build", "child"))
        fit(
            model,
            Context(made_up(images, targets), model, machine.accelerator, record, 0, Path(folder), **named),
            TRAINING,
        )
    return len(images) / seconds[-1]


def usual(images: Tensor, targets: Tensor, device: torch.device, workers: int) -> float:
    """Images per second of the second epoch of the loop that everybody writes."""
    model = network().to(device).train()
    optimizer = make_optimizer(decay_groups(model), TRAINING)
    data = DataLoader(Images(images, targets), 128, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        started = time.perf_counter()
        for batch, wanted in data:
            loss = nn.functional.cross_entropy(model(batch.to(device)), wanted.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
    return len(images) / (time.perf_counter() - started)


@click.command()
@click.option("--batches", default=40, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="of the DataLoader")
@click.option("--threads", default=2, show_default=True)
def main(batches: int, rounds: int, workers: int, threads: int) -> None:
    device = prepare(Settings(threads=threads)).device
    images = torch.randint(0, 256, (128 * batches, 3, 32, 32), dtype=torch.uint8)
    targets = torch.randint(10, (len(images),))
    figures: dict[str, list[float]] = {"compression.fit": [], "DataLoader": []}
    for _ in range(rounds):
        figures["compression.fit"].append(ours(images, targets, threads))
        figures["DataLoader"].append(usual(images, targets, device, workers))
    for name, speeds in figures.items():
        spread = f"(of {rounds}: {min(speeds):.0f} to {max(speeds):.0f})"
        print(f"{name:16} {statistics.median(speeds):8.0f} images/s  {spread}")
    ratios = [a / b for a, b in zip(*figures.values(), strict=True)]
    print(f"ratio            {statistics.median(ratios):8.2f}           ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
