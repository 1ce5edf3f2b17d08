"""Where data comes from: a folder, COMPRESSION_DATA, or the Hugging Face hub (also a mirror or its local cache).

Data is always files. Parquet files in folders are read directly, where `datasets` would first write a copy of them;
from the hub come the Arrow files that `datasets.load_dataset` writes, or has written before.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of httpx or httpx2, by its version

from compression.errors import UserError, first_line
from compression.files import file_sha256
from compression.models import hub

if TYPE_CHECKING:
    from collections.abc import Mapping

SplitFiles = dict[str, list[Path]]  # split -> its files


@dataclass(frozen=True)
class PublicDataset:
    """A public data set and the names of its files."""

    name: str  # its folder in COMPRESSION_DATA
    repository: str  # on the hub
    subfolders: tuple[str, ...]  # that may hold the files; the first is also the name of its configuration on the hub
    splits: tuple[str, ...]
    optional_splits: tuple[str, ...] = ()
    other_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> files that are not parquet


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a data set, and in words where they come from."""

    files: SplitFiles
    source: str

    def fingerprint(self) -> str:
        """Return a SHA-256 over the contents of all files and the splits they belong to.

        Raises UserError if one cannot be read.
        """
        total = hashlib.sha256()
        for split, files in sorted(self.files.items()):
            total.update(split.encode())
            for file in files:
                try:
                    total.update(bytes.fromhex(file_sha256(file)))
                except OSError as error:
                    raise UserError(f"The data in {file} cannot be read: {first_line(error)}.") from error
        return total.hexdigest()


def find_dataset(dataset: PublicDataset, data: str = "") -> DatasetFiles:
    """Find the files of `dataset` in the folder `data`; if it is empty, in COMPRESSION_DATA, then on the hub.

    Raises UserError, with the places searched, if no files are found or some are missing.
    """
    if data:
        return _from_folder(dataset, data)
    root = os.environ.get("COMPRESSION_DATA", "")
    if root and (files := _search_folder(Path(root) / dataset.name, dataset)):
        return DatasetFiles(files, f"the folder {Path(root) / dataset.name}")
    return _from_hub(dataset, f"not below COMPRESSION_DATA={root}" if root else "COMPRESSION_DATA is not set")


def _from_folder(dataset: PublicDataset, data: str) -> DatasetFiles:
    files = _search_folder(Path(data), dataset) or _search_folder(Path(data) / dataset.name, dataset)
    if not files:
        raise UserError(
            f"The folder data={data} does not hold {dataset.name}: no file there, or below "
            f"{' or '.join(dataset.subfolders)}, is named {dataset.splits[0]}-*.parquet."
        )
    return DatasetFiles(files, f"the folder {data}")


def _from_hub(dataset: PublicDataset, searched: str) -> DatasetFiles:
    """Download the data set, or find the copy of an earlier download. `searched` says where it was not found."""
    from datasets import config, exceptions  # takes seconds to import, and is not needed for folders

    try:
        return DatasetFiles(_download(dataset), f"{dataset.repository} from {constants.ENDPOINT}")
    except exceptions.DatasetGenerationError as error:  # a full disk or a damaged file: its cause says which
        raise UserError(
            f"{dataset.repository} from {constants.ENDPOINT} cannot be prepared in {config.HF_DATASETS_CACHE}: "
            f"{first_line(error.__cause__ or error)}; make room there, or give data=FOLDER with its parquet files."
        ) from error
    except (OSError, ValueError, HTTPError, exceptions.DatasetsError) as error:
        raise UserError(
            f"The data of {dataset.name} was not found: {searched}, no whole copy made by load_dataset is in "
            f"{config.HF_DATASETS_CACHE}, and {_failure_reason(error)}, or give data=FOLDER with its parquet files, or "
            f"set COMPRESSION_DATA to a folder that holds {dataset.name}/."
        ) from error


def _failure_reason(error: Exception) -> str:
    """Explain why the hub gave no data and what to set, as half a sentence."""
    if os.environ.get("HF_DATASETS_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        return "HF_DATASETS_OFFLINE forbids asking the hub, unset it"
    return hub.failure_reason(error)


def _download(dataset: PublicDataset) -> SplitFiles:
    """Return the Arrow files of every split in the cache of `datasets`, after a download if they are not there."""
    import datasets

    if not hub.is_reachable():
        datasets.config.HF_HUB_OFFLINE = True  # read at each call
    loaded = datasets.load_dataset(dataset.repository, dataset.subfolders[0] or None, keep_in_memory=False)
    if missing := set(dataset.splits) - set(loaded):
        raise FileNotFoundError(f"{dataset.repository} has no split {' and '.join(sorted(missing))}")
    splits = [split for split in (*dataset.splits, *dataset.optional_splits) if split in loaded]
    return {split: [Path(part["filename"]) for part in loaded[split].cache_files] for split in splits}


def _search_folder(folder: Path, dataset: PublicDataset) -> SplitFiles | None:
    """Return the files of every split in `folder` or the first subfolder that has any; None if none has.

    Raises UserError if files of a required split are missing.
    """
    for place in (folder, *(folder / name for name in dataset.subfolders)):
        files = {s: _split_files(place, s, dataset) for s in (*dataset.splits, *dataset.optional_splits)}
        if any(files.values()):
            _check_complete(files, place, dataset)
            return {split: found for split, found in files.items() if found}
    return None


def _split_files(folder: Path, split: str, dataset: PublicDataset) -> list[Path]:
    """Return the files of a split: parquet files by the hub's usual names, or else the data set's other names."""
    for pattern in (f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"):
        if found := sorted(folder.glob(pattern)):
            return found
    return [folder / name for name in dataset.other_names.get(split, ()) if (folder / name).exists()]


def _check_complete(files: SplitFiles, folder: Path, dataset: PublicDataset) -> None:
    """Raise UserError if files of a required split are missing."""
    for split in dataset.splits:
        if len(files[split]) < _expected_count(files[split], dataset.other_names.get(split, ())):
            names = ", ".join(file.name for file in files[split]) or "nothing"
            raise UserError(f"{folder} lacks files of {dataset.name}'s {split} split: it holds {names} of it.")


def _expected_count(found: list[Path], other_names: tuple[str, ...]) -> int:
    """Return how many files a split has, as far as the names of those found show: `-00000-of-00002`, say."""
    if found and found[0].suffix != ".parquet":
        return len(other_names)
    shards = re.search(r"-of-(\d+)\.parquet$", found[0].name) if found else None
    return int(shards[1]) if shards else 1
