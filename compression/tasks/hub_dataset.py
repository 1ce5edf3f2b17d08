"""`hub/OWNER/NAME`: any set of text with labels on the Hugging Face hub, a mirror, or in a folder laid out like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import UserError, first_line
from compression.tasks import text_files
from compression.tasks.sources import DatasetFiles, PublicDataset, find_dataset
from compression.tasks.table_files import find_files

if TYPE_CHECKING:
    from compression.tasks import TaskRequest
    from compression.tasks.task import Task

SPLITS = ("validation", "test")  # besides train: those that are used where they are there


def hub_dataset(request: TaskRequest) -> Task:
    """Load `hub/OWNER/NAME`, or `hub/OWNER/NAME/CONFIG` of a set with several configurations.

    Its columns, classes and splits are found as for the task `text`. Raises UserError for a name of another form, if
    the hub does not give it, and for data that cannot be learned from.
    """
    name = request.name.removeprefix("hub/")
    parts = name.split("/")
    if not all(parts) or len(parts) > 3 or ".." in parts:
        raise UserError(f"{request.name} names no data set: write hub/OWNER/NAME or hub/OWNER/NAME/CONFIG.")
    repository, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else ""
    if request.data:
        files = find_files(Path(request.data), (config, "data"))
        return text_files.make_task(request, DatasetFiles(files, f"{request.data}"))
    return text_files.make_task(request, _find(name, repository, config))


def _find(name: str, repository: str, config: str) -> DatasetFiles:
    """Find the files below COMPRESSION_DATA or on the hub. Raises UserError, with what the hub's library says."""
    subfolders = (config, "data")
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
                f"{repository} has several configurations: hub/{repository}/CONFIG, of {choices}."
            ) from error
        raise
