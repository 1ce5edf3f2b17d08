"""The tasks by name, and loading one.

Each name maps to "module:function"; the module is imported when its task is loaded, so that the command line
lists the tasks without waiting for torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.errors import UserError

if TYPE_CHECKING:
    from compression.tasks.task import Task

_GLUE = ("sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
_IMAGE_FOLDERS = ("imagefolder", "imagefolder/32", "imagefolder/64", "imagefolder/128")  # image side; default 224

TASKS: dict[str, str] = {
    "digits": "compression.tasks.digits:digits",
    "cifar10": "compression.tasks.cifar10:cifar10",
    **{f"glue/{name}": "compression.tasks.glue:glue" for name in _GLUE},
    **dict.fromkeys(_IMAGE_FOLDERS, "compression.tasks.imagefolder:imagefolder"),
}


@dataclass(frozen=True)
class TaskRequest:
    """Which task to load, and how. Empty strings and None stand for the task's defaults."""

    name: str
    data: str = ""  # the folder with the data
    limit: int | None = None  # the largest number of examples in each split
    model: str = ""  # the model whose tokenizer encodes the text


def load(name: str, *, data: str = "", limit: int | None = None, model: str = "") -> Task:
    """Load the task `name`. Its splits are the same whatever the seed of the run, so that runs can be compared.

    `data` is the folder with the data, `limit` the largest number of examples in each split, and `model` the model
    whose tokenizer encodes the text. Raises UserError for an unknown name, a limit below 1, and data that cannot be
    found or read.
    """
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} is out of range; it takes a whole number of examples, 1 or more.")
    module, function = TASKS[name].split(":")
    task: Task = getattr(importlib.import_module(module), function)(TaskRequest(name, data, limit, model))
    return task
