"""CIFAR-10: Krizhevsky 2009; 60,000 colour images of 32x32 pixels in ten classes."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from compression.errors import UserError, first_line
from compression.tasks import TaskRequest, cifar10_batches, tables
from compression.tasks.cache import Tensors, cached
from compression.tasks.images import Normalization, random_crop, random_flip, to_rgb
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.sources import PublicDataset, SplitFiles, find_dataset
from compression.tasks.splits import fixed_permutation, splits_digest, train_validation_indices
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
DATASET = PublicDataset(
    "cifar10",
    "uoft-cs/cifar10",
    subfolders=("plain_text", "data", "cifar-10-batches-py"),
    splits=("train", "test"),
    other_names={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
)
# Mean and standard deviation of the training images' channels, for pixels in [0, 1].
prepare = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def cifar10(request: TaskRequest) -> Task:
    """Load CIFAR-10 from parquet files or torchvision's pickled batches; a tenth of train is for validation.

    Raises UserError if the data cannot be found or is damaged.
    """
    normalization = prepare.requested(request)
    dataset = find_dataset(DATASET, request.data)
    tensors = cached(f"cifar10-2-{dataset.fingerprint()[:32]}", partial(decode, dataset.files))
    whole, tested = (Split(tensors[f"{s}.images"], tensors[f"{s}.labels"], normalization) for s in DATASET.splits)
    train, validation = (whole.select(part[: request.limit]) for part in train_validation_indices(len(whole)))
    test = tested.select(fixed_permutation(len(tested))[: request.limit])
    return Task(
        request.name,
        train=train,
        validation=validation,
        test=test,
        outputs=len(LABELS),
        labels=LABELS,
        metric="accuracy",
        compute_metrics=accuracy,
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
            "label_smoothing": 0.0,  # it makes worse teachers: Müller et al. 2019, arXiv:1906.02629
        },
        input_shape=(3, SIDE, SIDE),
        augment=augment,
        source=dataset.source,
        normalization=normalization,
        digest=splits_digest([train, validation, test], normalization, prepare),
        is_limited=request.limit is not None,
    )


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Crop with 4 pixels of padding and flip, at random: He et al. 2015, arXiv:1512.03385, section 4.2."""
    return random_flip(random_crop(images, 4, generator), generator)


def decode(files: SplitFiles) -> Tensors:
    """Return the images, uint8 `(n, 3, 32, 32)`, and labels, int64 `(n,)`, of every split as `split.images`, …"""
    tensors = {}
    for split, parts in files.items():
        pairs = [_read_table(file) if file.suffix else cifar10_batches.read_batch(file) for file in parts]
        tensors[f"{split}.images"] = torch.cat([images for images, _ in pairs])
        tensors[f"{split}.labels"] = torch.cat([labels for _, labels in pairs])
    return tensors


def _read_table(file: Path) -> tuple[Tensor, Tensor]:
    """Return images and labels of a parquet or Arrow file. Raises UserError for an image that cannot be decoded."""
    table = tables.read_tables([file], ["img"], LABELS)
    images = np.empty((len(table), SIDE, SIDE, 3), np.uint8)
    for i, image in enumerate(table.column("img").to_pylist()):
        try:
            images[i] = _decode_image(image["bytes"])
        except Exception as error:
            raise UserError(f"Image {i} of {file} cannot be used: {first_line(error)}.") from error
    labels = torch.tensor(table.column("label").to_pylist(), dtype=torch.long)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def _decode_image(encoded: bytes) -> np.ndarray:
    """Return the pixels, uint8 `(32, 32, 3)`. Raises ValueError for an image of another size."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.size != (SIDE, SIDE):  # NumPy would broadcast a single pixel over all
            raise ValueError(f"it has {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(to_rgb(image))
