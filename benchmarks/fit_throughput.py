"""Images per second of the lab's loop against a torchvision-transforms DataLoader, ResNet-20, the same steps.

    python benchmarks/fit_throughput.py [--batches 40] [--rounds 3] [--workers 2]

The two are timed in turn, round by round, on the same made-up CIFAR-sized images; both flip and crop.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from functools import partial

import click
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from compression import models
from compression.machine import prepare
from compression.settings import Settings
from compression.tasks.cifar10 import augment
from compression.tasks.cifar10 import prepare as normalised
from compression.training import Recipe, decay_groups, make_optimizer


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


def ours(images: Tensor, targets: Tensor, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for chosen in torch.randperm(len(targets), generator=generator).to(device).split(128):
        yield normalised(augment(images[chosen], generator)), targets[chosen]


def images_per_second(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Train a ResNet-20 on the batches; the first warms up and is not counted."""
    torch.manual_seed(0)
    model = models.rebuild(
        {"builder": "resnet20", "arguments": {"outputs": 10, "input_shape": [3, 32, 32], "width": 1.0}}
    )
    model.to(device).train()
    optimizer = make_optimizer(decay_groups(model), Recipe(optimizer="sgd", learning_rate=0.1))
    seen, started = 0, 0.0
    for number, (images, targets) in enumerate(batches):
        loss = torch.nn.functional.cross_entropy(model(images.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number == 0:
            loss.item()
            started = time.perf_counter()
        else:
            seen += len(targets)
    loss.item()
    return seen / (time.perf_counter() - started)


@click.command()
@click.option("--batches", default=40, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="of the DataLoader")
@click.option("--threads", default=2, show_default=True)
def main(batches: int, rounds: int, workers: int, threads: int) -> None:
    device = prepare(Settings(threads=threads)).device
    images = torch.randint(0, 256, (128 * (batches + 1), 3, 32, 32), dtype=torch.uint8)
    targets = torch.randint(10, (len(images),))
    usual = partial(DataLoader, Images(images, targets), 128, shuffle=True, num_workers=workers)
    here = images.to(device), targets.to(device)
    figures: dict[str, list[float]] = {"compression.fit": [], "DataLoader": []}
    for _ in range(rounds):
        figures["compression.fit"].append(images_per_second(ours(*here, device), device))
        figures["DataLoader"].append(images_per_second(usual(), device))
    for name, speeds in figures.items():
        spread = f"(of {rounds}: {min(speeds):.0f} to {max(speeds):.0f})"
        print(f"{name:16} {statistics.median(speeds):8.0f} images/s  {spread}")
    ratios = [a / b for a, b in zip(*figures.values(), strict=True)]
    print(f"ratio            {statistics.median(ratios):8.2f}           ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
