"""Images in one folder per class, as ImageNet is laid out: any such folder is a task.

All images are held in memory as uint8, 150 kB each at 224x224: tens of thousands of them fit, ImageNet does not.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

from compression.errors import UserError, first_line
from compression.files import file_sha256
from compression.tasks.cache import Tensors, cached
from compression.tasks.images import normalize, random_crop, random_flip
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.splits import splits_digest
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tasks import TaskRequest

DEFAULT_SIDE = 224  # pixels
RESIZE_FACTOR = 256 / 224  # the shorter side before the centre crop, as for torchvision's published ImageNet accuracies
HOLD_OUT_EVERY = 10  # one image in so many of each class is held out for a split that the data lacks
# Mean and standard deviation of ImageNet's channels, for pixels in [0, 1], as torchvision's weights expect them.
prepare = partial(normalize, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

Sample = tuple[Path, int]  # an image file and its class
Samples = dict[str, list[Sample]]  # by split


def imagefolder(request: TaskRequest) -> Task:
    """Load the images in `data=PATH`, resized to 224x224 or to the side in the task's name, as in `imagefolder/64`.

    PATH holds one folder of images per class, or such folders in `train` and possibly `val` and `test`. Splits that
    are missing are a tenth of each class of the rest; `val` without `test` is the test split, as for GLUE. Raises
    UserError if there is no such folder, if it is laid out otherwise, or if an image cannot be read.
    """
    folder, side = _find_folder(request), int(request.name.partition("/")[2] or DEFAULT_SIDE)
    labels, samples = find_splits(folder)
    samples = {split: chosen[: request.limit] for split, chosen in samples.items()}
    tensors = cached(f"imagefolder-{side}-{fingerprint(folder, samples)}", partial(decode, samples, side))
    train, validation, test = (
        Split(tensors[f"{split}.images"], tensors[f"{split}.labels"], prepare)
        for split in ("train", "validation", "test")
    )
    return Task(
        request.name,
        train=train,
        validation=validation,
        test=test,
        outputs=len(labels),
        labels=labels,
        metric="accuracy",
        compute_metrics=accuracy,
        loss=cross_entropy,
        model="resnet50",
        student="cnn5",
        training={  # He et al. 2015, arXiv:1512.03385, section 3.4, with a schedule for fewer epochs
            "epochs": 30,
            "batch_size": 64,
            "learning_rate": 0.05,
            "optimizer": "sgd",
            "schedule": "onecycle",
            "warmup": 0.25,
            "weight_decay": 1e-4,
            "label_smoothing": 0.0,
        },
        input_shape=(3, side, side),
        augment=augment,
        source=f"the folder {folder}",
        digest=splits_digest([train, validation, test]),
        is_limited=request.limit is not None,
    )


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Crop, with an eighth of the side as padding, and flip, at random."""
    return random_flip(random_crop(images, images.shape[-1] // 8, generator), generator)


def _find_folder(request: TaskRequest) -> Path:
    """Return the folder that the request names, or the one in COMPRESSION_DATA. Raises UserError if there is none."""
    root = os.environ.get("COMPRESSION_DATA", "")
    folder = Path(request.data) if request.data else Path(root) / "imagefolder"
    if not request.data and not (root and folder.is_dir()):
        raise UserError(f"{request.name} needs images: give data=PATH, a folder with a folder for each class.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; {request.name} takes one with a folder of images per class.")
    return folder


def find_splits(folder: Path) -> tuple[tuple[str, ...], Samples]:
    """Return the class names, and the samples of train, validation and test, each in a fixed random order.

    Raises UserError if there are fewer than two classes, a class without images or with too few to hold some out, or
    splits with different classes.
    """
    given = {split: folder / split for split in ("train", "val", "test") if _subfolders(folder / split)}
    if "train" not in given:
        labels, samples = read_folder(folder)
        rest, test = hold_out(samples, labels, folder)
    else:
        labels, rest = read_folder(given["train"])
        test = _read_split(given.get("test") or given.get("val"), labels)
    validation = _read_split(given["val"], labels) if {"train", "val", "test"} <= given.keys() else []
    if not test:
        rest, test = hold_out(rest, labels, folder)
    if not validation:
        rest, validation = hold_out(rest, labels, folder)
    splits = {"train": rest, "validation": validation, "test": test}
    return labels, {split: sorted(chosen, key=partial(_name_hash, folder)) for split, chosen in splits.items()}


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _read_split(folder: Path | None, labels: tuple[str, ...]) -> list[Sample]:
    """Return the samples of a split. Raises UserError if its classes are not `labels`, those of the training data."""
    if folder is None:
        return []
    split_labels, samples = read_folder(folder)
    if split_labels != labels:
        raise UserError(f"{folder} has the classes {', '.join(split_labels)}; train has {', '.join(labels)}.")
    return samples


def read_folder(folder: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """Return the class names and the samples in a folder.

    Raises UserError if there are fewer than two classes, or a class without images.
    """
    if (count := len(_subfolders(folder))) < 2:
        raise UserError(f"{folder} has {count} folders of images; a task takes two or more, one for each class.")
    images = ImageFolder(str(folder), allow_empty=True)
    samples = [(Path(file), label) for file, label in images.samples]
    filled = {label for _, label in samples}
    if empty := [name for label, name in enumerate(images.classes) if label not in filled]:
        raise UserError(f"{folder / empty[0]} holds no image (jpg, png, …); remove the folder or fill it.")
    return tuple(images.classes), samples


def hold_out(samples: Sequence[Sample], labels: Sequence[str], folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Hold out a tenth of each class, at least one image; return the rest and the held-out samples.

    Chosen by the hash of a file's name, so that the split is the same in every run and hardly changes if images are
    added. Raises UserError for a class with fewer than two images.
    """
    rest: list[Sample] = []
    held_out: list[Sample] = []
    for label, name in enumerate(labels):
        of_class = sorted((s for s in samples if s[1] == label), key=partial(_name_hash, folder))
        if len(of_class) < 2:
            raise UserError(f"The class {name!r} in {folder} has too few images to train, validate and test on.")
        count = max(1, len(of_class) // HOLD_OUT_EVERY)
        held_out += of_class[:count]
        rest += of_class[count:]
    return rest, held_out


def _name_hash(folder: Path, sample: Sample) -> str:
    """Return the SHA-256 of a file's name relative to `folder`: sorting by it is a fixed random order."""
    return hashlib.sha256(sample[0].relative_to(folder).as_posix().encode()).hexdigest()


def fingerprint(folder: Path, samples: Samples) -> str:
    """Return a SHA-256 over names, contents and splits of all files, cut to 32 hexadecimal digits."""
    total = hashlib.sha256()
    for split, chosen in samples.items():
        for file, label in chosen:
            total.update(f"{split} {label} {file.relative_to(folder).as_posix()}\n".encode())
            total.update(bytes.fromhex(file_sha256(file)))
    return total.hexdigest()[:32]


def decode(samples: Samples, side: int) -> Tensors:
    """Return images, uint8 `(n, 3, side, side)`, and labels, int64 `(n,)`, of every split as `split.images`, …"""
    tensors = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without holding the GIL
        for split, chosen in samples.items():
            images = pool.map(partial(load_image, side=side), [file for file, _ in chosen])
            tensors[f"{split}.images"] = torch.stack(list(images))
            tensors[f"{split}.labels"] = torch.tensor([label for _, label in chosen], dtype=torch.long)
    return tensors


def load_image(file: Path, side: int) -> Tensor:
    """Return the centre crop of an image, uint8 `(3, side, side)`. Raises UserError if it cannot be read."""
    try:
        with Image.open(file) as image:
            resized = functional.resize(image.convert("RGB"), [round(side * RESIZE_FACTOR)])
            cropped: Tensor = functional.pil_to_tensor(functional.center_crop(resized, [side]))
            return cropped
    except Exception as error:
        raise UserError(f"The image {file} cannot be read ({first_line(error)}); repair or remove it.") from error
