"""Where data comes from: a folder, COMPRESSION_DATA, or the Hugging Face hub (a mirror, the copies here).

Whatever the place, data is files. Those in folders are read as they lie, where `datasets` would first write a
copy of them; from the hub come the Arrow files that `datasets.load_dataset` makes, or made before.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError

from compression.errors import UserError, first_line
from compression.models import hub

if TYPE_CHECKING:
    from collections.abc import Mapping

Files = dict[str, list[Path]]  # by split


@dataclass(frozen=True)
class Origin:
    """A public data set and the files it consists of."""

    name: str  # its folder below COMPRESSION_DATA
    repository: str  # on the hub
    folders: tuple[str, ...]  # where its files may lie below its own; the first is its configuration on the hub
    splits: tuple[str, ...]
    optional: tuple[str, ...] = ()  # splits that may be missing
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # files that are no parquet, by split


@dataclass(frozen=True)
class Found:
    """The files of a data set, and in words where they lie."""

    files: Files
    source: str

    def fingerprint(self) -> str:
        """A SHA-256 over the content of all files and the splits they are in."""
        total = hashlib.sha256()
        for split, files in sorted(self.files.items()):
            total.update(split.encode())
            for file in files:
                with file.open("rb") as opened:
                    total.update(hashlib.file_digest(opened, "sha256").digest())
        return total.hexdigest()


def find(origin: Origin, data: str = "") -> Found:
    """The files of `origin` in the folder `data`; without one, below COMPRESSION_DATA, then on the hub.

    Raises UserError, saying where it looked, if they are in none of these places or some are missing.
    """
    if data:
        return _in_folder(origin, data)
    root = os.environ.get("COMPRESSION_DATA", "")
    if root and (files := _below(Path(root) / origin.name, origin)):
        return Found(files, f"the folder {Path(root) / origin.name}")
    return _on_hub(origin, f"not below COMPRESSION_DATA={root}" if root else "COMPRESSION_DATA is not set")


def _in_folder(origin: Origin, data: str) -> Found:
    files = _below(Path(data), origin) or _below(Path(data) / origin.name, origin)
    if not files:
        raise UserError(
            f"The folder data={data} does not hold {origin.name}: no file there, or below "
            f"{' or '.join(origin.folders)}, is named {origin.splits[0]}-*.parquet."
        )
    return Found(files, f"the folder {data}")


def _on_hub(origin: Origin, looked: str) -> Found:
    from datasets import config, exceptions  # takes seconds, which data in folders does not need

    try:
        return Found(_prepared(origin), f"{origin.repository} from {constants.ENDPOINT}")
    except exceptions.DatasetGenerationError as error:  # a full disk, a damaged file: its cause says which
        raise UserError(
            f"{origin.repository} from {constants.ENDPOINT} cannot be prepared in {config.HF_DATASETS_CACHE}: "
            f"{first_line(error.__cause__ or error)}; make room there, or give data=FOLDER with its parquet files."
        ) from error
    except (OSError, ValueError, HTTPError, exceptions.DatasetsError) as error:
        raise UserError(
            f"The data of {origin.name} was not found: {looked}, no whole copy made by load_dataset is in "
            f"{config.HF_DATASETS_CACHE}, and {_trouble(error)}, or give data=FOLDER with its parquet files, or "
            f"set COMPRESSION_DATA to a folder that holds {origin.name}/."
        ) from error


def _trouble(error: Exception) -> str:
    """Why the hub gave no data and what to set, as half a sentence."""
    if os.environ.get("HF_DATASETS_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        return "HF_DATASETS_OFFLINE forbids asking the hub, unset it"
    return hub.trouble(error)


def _prepared(origin: Origin) -> Files:
    """The Arrow files that `datasets` keeps of every split, made now if they are not here and the hub is."""
    import datasets

    if not hub.reachable():
        datasets.config.HF_HUB_OFFLINE = True  # it is read at each call
    made = datasets.load_dataset(origin.repository, origin.folders[0], keep_in_memory=False)
    if missing := set(origin.splits) - set(made):
        raise FileNotFoundError(f"{origin.repository} has no split {' and '.join(sorted(missing))}")
    wanted = [split for split in (*origin.splits, *origin.optional) if split in made]
    return {split: [Path(part["filename"]) for part in made[split].cache_files] for split in wanted}


def _below(folder: Path, origin: Origin) -> Files | None:
    """The files of every split, in `folder` or one of the places below it; None if there are none at all."""
    for place in (folder, *(folder / name for name in origin.folders)):
        files = {split: _of_split(place, split, origin) for split in (*origin.splits, *origin.optional)}
        if any(files.values()):
            _check_whole(files, place, origin)
            return {split: found for split, found in files.items() if found}
    return None


def _of_split(place: Path, split: str, origin: Origin) -> list[Path]:
    for pattern in (f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"):
        if found := sorted(place.glob(pattern)):
            return found
    return [place / name for name in origin.named.get(split, ()) if (place / name).exists()]


def _check_whole(files: Files, place: Path, origin: Origin) -> None:
    for split in origin.splits:
        if len(files[split]) < _expected(files[split], origin.named.get(split, ())):
            names = ", ".join(file.name for file in files[split]) or "nothing"
            raise UserError(f"{place} lacks files of {origin.name}'s {split} split: it holds {names} of it.")


def _expected(found: list[Path], named: tuple[str, ...]) -> int:
    """How many files a split consists of, as far as the names of those that were found tell."""
    if found and found[0].suffix != ".parquet":
        return len(named)
    shards = re.search(r"-of-(\d+)\.parquet$", found[0].name) if found else None
    return int(shards[1]) if shards else 1
