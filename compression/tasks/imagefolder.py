"""Pictures in a folder for each class, as ImageNet is laid out: any such folder is a task.

Every picture is held in memory as bytes, 150 kB at 224x224: tens of thousands of them fit, ImageNet does not.
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
from compression.tasks.cache import Tensors, cached
from compression.tasks.images import flip, normalise, shift
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.splits import digest
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.tasks import Request

SIDE = 224
LARGER = 256 / 224  # the shorter side before the middle is cut out: how torchvision's ImageNet figures are made
HELD_OUT = 10  # one picture of so many of each class, where a split has to be cut
# Mean and deviation of ImageNet's channels, in [0, 1]: what torchvision's weights were trained with.
prepare = partial(normalise, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

Picture = tuple[Path, int]  # a file and its class
Pictures = dict[str, list[Picture]]  # by split


def imagefolder(request: Request) -> Task:
    """The pictures below `data=PATH`, at 224x224 or, as `imagefolder/64`, at another side.

    PATH holds a folder of pictures for each class, or such folders below `train` and perhaps `val` and `test`. What is
    missing is cut from the rest, a tenth of each class; a `val` without a `test` is the test split, as for GLUE.
    """
    folder, side = _folder(request), int(request.name.partition("/")[2] or SIDE)
    labels, pictures = splits(folder)
    pictures = {split: chosen[: request.limit] for split, chosen in pictures.items()}
    tensors = cached(f"imagefolder-{side}-{fingerprint(folder, pictures)}", partial(decoded, pictures, side))
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
        metrics=accuracy,
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
        digest=digest([train, validation, test]),
        limited=request.limit is not None,
    )


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Mirrored, and shifted by up to an eighth of the side."""
    return flip(shift(images, generator, pixels=images.shape[-1] // 8), generator)


def _folder(request: Request) -> Path:
    root = os.environ.get("COMPRESSION_DATA", "")
    folder = Path(request.data) if request.data else Path(root) / "imagefolder"
    if not request.data and not (root and folder.is_dir()):
        raise UserError(f"{request.name} needs pictures: give data=PATH, a folder with a folder for each class.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; {request.name} takes one with a folder of pictures per class.")
    return folder


def splits(folder: Path) -> tuple[tuple[str, ...], Pictures]:
    """The class names, and the pictures of train, validation and test, each in a fixed random order.

    Raises UserError where there are no pictures, fewer than two classes, or too few of a class to cut splits from.
    """
    given = {split: folder / split for split in ("train", "val", "test") if _parts(folder / split)}
    if "train" not in given:
        labels, pictures = read(folder)
        rest, test = cut(pictures, labels, folder)
    else:
        labels, rest = read(given["train"])
        test = _same(given.get("test") or given.get("val"), labels)
    validation = _same(given["val"], labels) if {"train", "val", "test"} <= given.keys() else []
    if not test:
        rest, test = cut(rest, labels, folder)
    if not validation:
        rest, validation = cut(rest, labels, folder)
    found = {"train": rest, "validation": validation, "test": test}
    return labels, {split: sorted(chosen, key=partial(_place, folder)) for split, chosen in found.items()}


def _parts(folder: Path) -> list[Path]:
    return [part for part in folder.iterdir() if part.is_dir()] if folder.is_dir() else []


def _same(folder: Path | None, labels: tuple[str, ...]) -> list[Picture]:
    """The pictures of a split, which must have the same classes as the training data."""
    if folder is None:
        return []
    found, pictures = read(folder)
    if found != labels:
        raise UserError(f"{folder} has the classes {', '.join(found)}; train has {', '.join(labels)}.")
    return pictures


def read(folder: Path) -> tuple[tuple[str, ...], list[Picture]]:
    """The class names and the pictures below a folder; UserError unless there are two classes with pictures."""
    if (count := len(_parts(folder))) < 2:
        raise UserError(f"{folder} has {count} folders of pictures; a task takes two or more, one for each class.")
    found = ImageFolder(str(folder), allow_empty=True)
    pictures = [(Path(file), label) for file, label in found.samples]
    filled = {label for _, label in pictures}
    if empty := [name for label, name in enumerate(found.classes) if label not in filled]:
        raise UserError(f"{folder / empty[0]} holds no picture (jpg, png, …); take the folder away or fill it.")
    return tuple(found.classes), pictures


def cut(pictures: Sequence[Picture], labels: Sequence[str], folder: Path) -> tuple[list[Picture], list[Picture]]:
    """A tenth of each class, at least one picture, taken away: what is left, and what was taken.

    By the hash of a file's name, so that the split is the same in every run, and hardly changes with new pictures.
    """
    left: list[Picture] = []
    taken: list[Picture] = []
    for label, name in enumerate(labels):
        own = sorted((p for p in pictures if p[1] == label), key=partial(_place, folder))
        if len(own) < 2:
            raise UserError(f"The class {name!r} in {folder} has too few pictures to train, validate and test on.")
        held_out = max(1, len(own) // HELD_OUT)
        taken, left = taken + own[:held_out], left + own[held_out:]
    return left, taken


def _place(folder: Path, picture: Picture) -> str:
    return hashlib.sha256(picture[0].relative_to(folder).as_posix().encode()).hexdigest()


def fingerprint(folder: Path, pictures: Pictures) -> str:
    """A SHA-256 over the names and contents of all files and the splits they are in."""
    total = hashlib.sha256()
    for split, chosen in pictures.items():
        for file, label in chosen:
            total.update(f"{split} {label} {file.relative_to(folder).as_posix()}\n".encode())
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:32]


def decoded(pictures: Pictures, side: int) -> Tensors:
    """uint8 images `(n, 3, side, side)` and labels `(n,)` of every split."""
    tensors = {}
    for split, chosen in pictures.items():
        tensors[f"{split}.images"] = _stacked([file for file, _ in chosen], side)
        tensors[f"{split}.labels"] = torch.tensor([label for _, label in chosen], dtype=torch.long)
    return tensors


def _stacked(files: Iterable[Path], side: int) -> Tensor:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding leaves Python's lock
        return torch.stack(list(pool.map(partial(pixels, side=side), files)))


def pixels(file: Path, side: int) -> Tensor:
    """The middle of a picture, uint8 `(3, side, side)`; UserError naming a file that cannot be read."""
    try:
        with Image.open(file) as image:
            scaled = functional.resize(image.convert("RGB"), [round(side * LARGER)])
            return functional.pil_to_tensor(functional.center_crop(scaled, [side]))
    except Exception as error:
        raise UserError(f"The picture {file} cannot be read ({first_line(error)}); mend it or take it away.") from error
