"""CIFAR-10: Krizhevsky 2009, 60,000 colour images of 32x32 pixels in ten classes."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from compression.errors import UserError, first_line
from compression.tasks import Request, batches, tables
from compression.tasks.cache import Tensors, cached
from compression.tasks.images import flip, normalise, shift
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.sources import Files, Origin, find
from compression.tasks.splits import cut, digest, shuffled
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
ORIGIN = Origin(
    "cifar10",
    "uoft-cs/cifar10",
    folders=("plain_text", "data", "cifar-10-batches-py"),
    splits=("train", "test"),
    named={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
)
# Mean and deviation of the training images' channels, in [0, 1].
prepare = partial(normalise, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def cifar10(request: Request) -> Task:
    """From parquet files or torchvision's pickled batches; the validation split is cut from train."""
    found = find(ORIGIN, request.data)
    tensors = cached(f"cifar10-{found.fingerprint()[:32]}", partial(decoded, found.files))
    labelled, tested = (Split(tensors[f"{s}.images"], tensors[f"{s}.labels"], prepare) for s in ORIGIN.splits)
    train, validation = (labelled.take(part[: request.limit]) for part in cut(len(labelled)))
    test = tested.take(shuffled(len(tested))[: request.limit])
    return Task(
        request.name,
        train=train,
        validation=validation,
        test=test,
        outputs=len(LABELS),
        labels=LABELS,
        metric="accuracy",
        metrics=accuracy,
        loss=cross_entropy,
        model="resnet18",
        student="cnn5",
        training={
            "epochs": 30,
            "batch_size": 128,
            "learning_rate": 0.1,
            "optimizer": "sgd",
            "schedule": "onecycle",
            "warmup": 0.25,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,  # it spoils a teacher: Müller et al. 2019, arXiv:1906.02629
        },
        input_shape=(3, SIDE, SIDE),
        augment=augment,
        source=found.source,
        digest=digest([train, validation, test]),
        limited=request.limit is not None,
    )


def augment(images: Tensor, generator: Generator) -> Tensor:
    """He et al. 2015, arXiv:1512.03385, section 4.2."""
    return flip(shift(images, generator, pixels=4), generator)


def decoded(files: Files) -> Tensors:
    """uint8 images `(n, 3, 32, 32)` and labels `(n,)` of every split."""
    tensors = {}
    for split, parts in files.items():
        pairs = [_table(file) if file.suffix else batches.read_batch(file) for file in parts]
        tensors[f"{split}.images"] = torch.cat([images for images, _ in pairs])
        tensors[f"{split}.labels"] = torch.cat([labels for _, labels in pairs])
    return tensors


def _table(file: Path) -> tuple[Tensor, Tensor]:
    table = tables.read([file], ["img"], LABELS)
    images = np.empty((len(table), SIDE, SIDE, 3), np.uint8)
    for i, image in enumerate(table.column("img").to_pylist()):
        try:
            images[i] = _pixels(image["bytes"])
        except Exception as error:
            raise UserError(f"Image {i} of {file} cannot be used: {first_line(error)}.") from error
    labels = torch.tensor(table.column("label").to_pylist(), dtype=torch.long)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def _pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        if image.size != (SIDE, SIDE):  # NumPy would stretch a single pixel over all
            raise ValueError(f"it has {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(image.convert("RGB"))
