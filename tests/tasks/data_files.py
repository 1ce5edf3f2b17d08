"""Data sets of a few rows, in the file formats of the hub and torchvision."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from compression.tasks.cifar10 import LABELS


def write_parquet(file: Path, columns: dict[str, list], classes: tuple[str, ...] = ()) -> Path:
    """Write a parquet file, with the class names in its metadata as the hub's libraries write them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    note = json.dumps({"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}})
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"huggingface": note}) if classes else table, file)
    return file


def hub_repository(folder: Path, name: str, splits: Iterable[str], features: Sequence[dict] = ()) -> dict[str, bytes]:
    """Return the parquet files of `folder` as a hub repository, by path, with a card for configuration `name`."""
    files = [{"split": split, "path": f"{name}/{split}-*"} for split in splits]
    card: dict[str, list] = {"configs": [{"config_name": name, "data_files": files}]}
    if features:
        card["dataset_info"] = [{"config_name": name, "features": list(features)}]
    content = {f"{name}/{file.name}": file.read_bytes() for file in folder.glob("*.parquet")}
    return content | {"README.md": f"---\n{json.dumps(card)}\n---\n".encode()}  # JSON is YAML


def random_images(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return random images `(count, 32, 32, 3)` and their labels, each class in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, [i % 10 for i in range(count)]


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def cifar_parquet(file: Path, count: int, seed: int) -> Path:
    images, labels = random_images(count, seed)
    rows = [{"bytes": png(image), "path": None} for image in images]
    return write_parquet(file, {"img": rows, "label": labels}, LABELS)


def cifar_folder(folder: Path) -> Path:
    """Write 60 training images in two files and 20 test images."""
    cifar_parquet(folder / "train-00000-of-00002.parquet", 30, seed=1)
    cifar_parquet(folder / "train-00001-of-00002.parquet", 30, seed=2)
    cifar_parquet(folder / "test-00000-of-00001.parquet", 20, seed=3)
    return folder


def cifar_batches(folder: Path) -> Path:
    """Write torchvision's `cifar-10-batches-py`: five training batches of 12 images, a test batch of 20."""
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        images, labels = random_images(20 if name == "test_batch" else 12, seed=i)
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))
        content = {b"data": rows, b"labels": labels, b"batch_label": b"made", b"filenames": [b"a.png"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder
