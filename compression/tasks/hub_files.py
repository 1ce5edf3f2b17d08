"""The files of any set on the Hugging Face hub, a mirror, or in a folder laid out like it, by OWNER/NAME."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import UserError, first_line
from compression.tasks.sources import DatasetFiles, PublicDataset, find_dataset
from compression.tasks.table_files import find_files

if TYPE_CHECKING:
    from compression.tasks import TaskRequest

SPLITS = ("validation", "test")  # besides train: those that are used where they are there


def other_form(request: TaskRequest, name: str) -> UserError:
    """Return the refusal of a task whose name ends in `name`, which is of no set on the hub."""
    prefix = request.name.removesuffix(name)
    return UserError(f"{request.name} names no data set: write {prefix}OWNER/NAME or {prefix}OWNER/NAME/CONFIG.")


def find_hub_files(request: TaskRequest, name: str) -> DatasetFiles:
    """Find the files of the set `name`: OWNER/NAME, or OWNER/NAME/CONFIG of one with several configurations.

    Raises UserError for a name of another form, and if there are none, with what the hub's library says.
    """
    parts, prefix = name.split("/"), request.name.removesuffix(name)
    if not all(parts) or len(parts) > 3 or ".." in parts:
        raise other_form(request, name)
    repository, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else ""
    subfolders = (config, "data")
    if request.data:
        return DatasetFiles(find_files(Path(request.data), subfolders), f"{request.data}")
    try:
        return find_dataset(PublicDataset(name, repository, subfolders, splits=("train",), optional_splits=SPLITS))
    except RuntimeError as error:  # a repository with a script in place of files
        raise UserError(
            f"{repository} cannot be read ({first_line(error)}); take one that holds parquet files."
        ) from error
    except UserError as error:
        said = str(error.__cause__)
        if isinstance(error.__cause__, ValueError) and "vailable" in said:  # of two sentences of `datasets`
            choices = said.partition("vailable")[2].partition("[")[2].partition("]")[0]
            raise UserError(
                f"{repository} has several configurations: {prefix}{repository}/CONFIG, of {choices}."
            ) from error
        raise
