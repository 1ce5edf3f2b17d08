"""The tasks by name, and how one is loaded.

Every entry is "module:function", imported only when its task is asked for: the command line lists the tasks
without waiting for torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.errors import UserError

if TYPE_CHECKING:
    from compression.tasks.task import Task

_GLUE = ("sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
_FOLDERS = ("imagefolder", "imagefolder/32", "imagefolder/64", "imagefolder/128")  # the side of a picture, 224 if empty

TASKS: dict[str, str] = {
    "digits": "compression.tasks.digits:digits",
    "cifar10": "compression.tasks.cifar10:cifar10",
    **{f"glue/{name}": "compression.tasks.glue:glue" for name in _GLUE},
    **dict.fromkeys(_FOLDERS, "compression.tasks.imagefolder:imagefolder"),
}


@dataclass(frozen=True)
class Request:
    """What was asked for. Empty texts and None mean: the task's own."""

    name: str
    data: str = ""  # a folder with the data
    limit: int | None = None  # at most so many examples of each split
    model: str = ""  # whose tokenizer reads the text


def load(name: str, *, data: str = "", limit: int | None = None, model: str = "") -> Task:
    """The task `name`, in the same splits whatever a run's seed, so that runs can be compared.

    `data` is a folder, `limit` the most examples of each split, `model` whose tokenizer reads the text.
    Raises UserError for an unknown name, a limit below 1, and data that cannot be found or read.
    """
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} is out of range; it takes a whole number of examples, 1 or more.")
    module, function = TASKS[name].split(":")
    return getattr(importlib.import_module(module), function)(Request(name, data, limit, model))
