"""Images in one folder per class, as ImageNet is laid out: any such folder is a task.

What is read, and how, is one convention. Folders called `train` or `training`, `val`, `valid` or `validation`, and
`test` or `testing`, whatever their case, are splits if they hold folders of images; all other folders are classes,
with the images in them and in folders below. Classes of splits are matched by name, whatever its case. What is hidden
(`.ipynb_checkpoints`, `._1.jpg`, `__MACOSX`) is not read. Images are seen as a browser shows them: `images.to_rgb`.

All images are held in memory as uint8, 150 kB each at 224x224: tens of thousands of them fit, ImageNet does not.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import functional

from compression.errors import UserError, first_line
from compression.files import file_sha256, require_regular
from compression.models.classes import folded
from compression.tasks.cache import Tensors, cached
from compression.tasks.images import Normalization, random_crop, random_flip, to_rgb
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.splits import splits_digest
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tasks import TaskRequest

log = logging.getLogger(__name__)

DEFAULT_SIDE = 224  # pixels
RESIZE_FACTOR = 256 / 224  # the shorter side before the centre crop, as for torchvision's published ImageNet accuracies
HOLD_OUT_EVERY = 10  # one image in so many of each class is held out for a split that the data lacks
# Mean and standard deviation of ImageNet's channels, for pixels in [0, 1], as torchvision's weights expect them.
prepare = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
NOT_IMAGES = ("__MACOSX", "@eaDir")  # folders that macOS and Synology add; those that begin with a dot are hidden
SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".jfif")

Sample = tuple[Path, int]  # an image file and its class
Samples = dict[str, list[Sample]]  # by split


def imagefolder(request: TaskRequest) -> Task:
    """Load the images in `data=PATH`, resized to 224x224 or to the side in the task's name, as in `imagefolder/64`.

    PATH holds one folder of images per class, or such folders in `train` and possibly `val` and `test`. Splits that
    are missing are a tenth of each class of the rest; `val` without `test` is the test split, as for GLUE. Raises
    UserError if there is no such folder, if it is laid out otherwise, or if an image cannot be read.
    """
    normalization = prepare.requested(request)
    folder, side = _find_folder(request), int(request.name.partition("/")[2] or DEFAULT_SIDE)
    labels, samples = find_splits(folder)
    samples = {split: chosen[: request.limit] for split, chosen in samples.items()}
    tensors = cached(f"imagefolder-2-{side}-{fingerprint(folder, samples)}", partial(decode, samples, side))
    train, validation, test = (
        Split(tensors[f"{split}.images"], tensors[f"{split}.labels"], normalization)
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
        normalization=normalization,
        source=f"the folder {folder}",
        digest=splits_digest([train, validation, test], normalization, prepare),
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

    Raises UserError if there are fewer than two classes, a class without images or with too few to hold some out,
    splits with classes that train lacks, or folders of which it is not clear what they are.
    """
    given = _split_folders(folder)
    labels, rest = read_folder(given.get("train", folder))
    test = _read_split(given.get("test") or given.get("validation"), labels)
    validation = _read_split(given["validation"], labels) if {"validation", "test"} <= given.keys() else []
    _warn_of_copies(rest, [*validation, *test])
    if not test:
        rest, test = hold_out(rest, labels, folder)
    if not validation:
        rest, validation = hold_out(rest, labels, folder)
    splits = {"train": rest, "validation": validation, "test": test}
    return labels, {split: sorted(chosen, key=partial(_name_hash, folder)) for split, chosen in splits.items()}


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders that are splits; none if `folder` holds classes.

    Raises UserError if two are the same split, none is for training, or a split or what lies beside has another layout.
    """
    inside = _subfolders(folder)
    named: dict[str, Path] = {}
    for path in inside:
        if (split := SPLITS.get(path.name.casefold())) is None:
            continue
        if split in named:
            raise UserError(f"{named[split]} and {path} are both the {split} split; put them together.")
        named[split] = path
    given = {split: path for split, path in named.items() if _subfolders(path)}
    if "train" in given:
        classes = {folded(path.name) for path in _subfolders(given["train"])}
        for path in inside:
            if path not in named.values() and classes & {folded(below.name) for below in _subfolders(path)}:
                raise UserError(f"{path} has folders of classes as train has, and is no split; name it val or test.")
        return given
    if given or (len(named) > 1 and "train" in named):
        names = ", ".join(path.name for path in named.values())
        raise UserError(f"{folder} holds {names}, but no folder train with a folder of images for each class in it.")
    _check_nesting(inside)
    return {}


def _check_nesting(classes: Sequence[Path]) -> None:
    """Raise UserError if folders look like splits of other names: no images in them, but all the same folders."""
    nested = [{folded(below.name) for below in _subfolders(path)} for path in classes]
    alike = len(classes) > 1 and len(nested[0]) > 1 and all(each == nested[0] for each in nested)
    if alike and not any(_is_image(file) for path in classes for file in path.iterdir()):
        names = " and ".join(path.name for path in classes)
        raise UserError(f"{names} hold the same folders; if these are the classes, name the splits train and test.")


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder` by name, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NOT_IMAGES


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not _is_hidden(file.name)


def _images_below(folder: Path) -> list[Path]:
    """Return the image files in `folder` and in folders below, sorted, without hidden ones.

    Raises UserError if what bears an image's name is no file that can be read.
    """
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # two links to a folder above would have it walked 2^40 times
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [path for path in (Path(place, name) for name in files) if _is_image(path)]
    for path in found:
        try:
            require_regular(path)
            path.open("rb").close()
        except OSError as error:
            raise UserError(f"The image {path} cannot be read ({first_line(error)}); repair or remove it.") from error
    return sorted(found)


def _read_split(folder: Path | None, labels: tuple[str, ...]) -> list[Sample]:
    """Return the samples of a split, their classes matched by name with `labels`, those of the training data.

    A class may be missing. Raises UserError if there is another one, or no image.
    """
    if folder is None:
        return []
    classes = {folded(label): label for label in labels}
    folders = _class_folders(folder)
    if unknown := [path.name for path in folders if folded(path.name) not in classes]:
        names = ", ".join(path.name for path in folders)
        raise UserError(f"{folder} has the classes {names}; train has {', '.join(labels)}, and not {unknown[0]}.")
    places = {folded(label): place for place, label in enumerate(labels)}
    samples = [(file, places[folded(path.name)]) for path in folders for file in _images_below(path)]
    if not samples:
        raise UserError(f"{folder} holds no image (jpg, png, …); remove the folder or fill it.")
    if missing := [label for place, label in enumerate(labels) if place not in {label for _, label in samples}]:
        log.warning("%s has no image of %s: its figures say nothing of them.", folder, ", ".join(missing))
    return samples


def _class_folders(folder: Path) -> list[Path]:
    """Return the folders of classes, by name. Raises UserError if two have the same name but for its case."""
    folders = _subfolders(folder)
    by_name: dict[str, Path] = {}
    for path in folders:
        if (other := by_name.setdefault(folded(path.name), path)) != path:
            raise UserError(f"{other} and {path} have the same name but for its case; put them together.")
    return folders


def read_folder(folder: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """Return the class names and the samples in a folder.

    Raises UserError if there are fewer than two classes, or a class without images.
    """
    folders = _class_folders(folder)
    if len(folders) < 2:
        raise UserError(f"{folder} has {len(folders)} folders of images; a task takes two or more, one for each class.")
    samples = []
    for label, path in enumerate(folders):
        if not (files := _images_below(path)):
            raise UserError(f"{path} holds no image (jpg, png, …); remove the folder or fill it.")
        samples += [(file, label) for file in files]
    return tuple(path.name for path in folders), samples


def hold_out(samples: Sequence[Sample], labels: Sequence[str], folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Hold out a tenth of each class, at least one image; return the rest and the held-out samples.

    Chosen by the hash of a file's name, so that the split is the same in every run and hardly changes if images are
    added. Copies of a held-out image are held out too. Raises UserError for a class with fewer than two images.
    """
    rest: list[Sample] = []
    held_out: list[Sample] = []
    contents = _contents(samples)
    for label, name in enumerate(labels):
        of_class = sorted((s for s in samples if s[1] == label), key=partial(_name_hash, folder))
        if len(of_class) < 2:
            raise UserError(f"The class {name!r} in {folder} has too few images to train, validate and test on.")
        count = max(1, len(of_class) // HOLD_OUT_EVERY)
        chosen = {contents[file] for file, _ in of_class[:count]}
        kept = [sample for sample in of_class[count:] if contents[sample[0]] not in chosen]
        if not kept:
            log.warning(
                "All images of the class %s in %s are the same: it is tested on what it trains on.", name, folder
            )
        held_out += [sample for sample in of_class if sample not in kept] if kept else of_class[:count]
        rest += kept or of_class[count:]
    return rest, held_out


def _contents(samples: Sequence[Sample]) -> dict[Path, str]:
    """Return for each file what is the same for its copies: its size, and a checksum if another has the same size."""
    sizes = {file: file.stat().st_size for file, _ in samples}
    counts = Counter(sizes.values())
    return {file: f"{size} {file_sha256(file) if counts[size] > 1 else ''}" for file, size in sizes.items()}


def _warn_of_copies(train: Sequence[Sample], others: Sequence[Sample]) -> None:
    """Warn if images of the splits that are given are in the training data too."""
    if not others:
        return
    contents = _contents([*train, *others])
    known = {contents[file] for file, _ in train}
    if count := sum(contents[file] in known for file, _ in others):
        log.warning("%s of %s images to validate or test on are in the training data too.", count, len(others))


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
            resized = functional.resize(to_rgb(image), [round(side * RESIZE_FACTOR)])
            cropped: Tensor = functional.pil_to_tensor(functional.center_crop(resized, [side]))
            return cropped
    except Exception as error:
        raise UserError(f"The image {file} cannot be read ({first_line(error)}); repair or remove it.") from error
