"""The tasks by name, and loading one: the lab's own, those of packages, of the hub, and of somebody's own code.

Each name maps to "module:function"; the module is imported when its task is loaded, so that the command line
lists the tasks without waiting for torch. Packages bring more by entry points of the group `compression.tasks`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.errors import UserError
from compression.registry import Registry

if TYPE_CHECKING:
    from compression.tasks.task import Task

_GLUE = ("sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
_IMAGE_FOLDERS = ("imagefolder", "imagefolder/32", "imagefolder/64", "imagefolder/128")  # image side; default 224
_TEXT = ("text", "text/regression")  # classes or numbers by the labels themselves, or whole numbers as numbers

_OF_PATHS = ("language", "text2text", "choice")  # tasks that take their file after a /, too; all of language models

TASKS = Registry(
    "task",
    {
        "digits": "compression.tasks.digits:digits",
        "cifar10": "compression.tasks.cifar10:cifar10",
        **{f"glue/{name}": "compression.tasks.glue:glue" for name in _GLUE},
        **dict.fromkeys(_IMAGE_FOLDERS, "compression.tasks.imagefolder:imagefolder"),
        **dict.fromkeys(_TEXT, "compression.tasks.text_files:text"),
        "language/wikitext2": "compression.tasks.language:language",
        **{name: f"compression.tasks.{name}:{name}" for name in _OF_PATHS},
    },
    "compression.tasks",
)
FORMS = (  # of the names that TASKS cannot list
    "hub/OWNER/NAME",
    "language/hub/OWNER/NAME",
    *(f"{name}/FILE_OR_FOLDER" for name in _OF_PATHS),
    "FILE.py:FUNCTION",
    "PACKAGE.MODULE:FUNCTION",
)
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class TaskRequest:
    """Which task to load, and how. Empty strings and None stand for the task's defaults."""

    name: str
    data: str = ""  # the folder with the data, or the file
    limit: int | None = None  # the largest number of examples in each split
    model: str = ""  # the model whose tokenizer encodes the text
    context: int | None = None  # of language: tokens in a window
    text_columns: tuple[str, ...] = ()  # of tables: the text, or pair of texts
    label_column: str = ""  # of tables
    mean: tuple[float, ...] = ()  # of images: of all channels or of each, for pixels in [0, 1]
    std: tuple[float, ...] = ()

    def about_data(self) -> dict[str, Any]:
        """What is asked of the data themselves, by name: neither their number nor for which model."""
        fields = ("data", "context", "text_columns", "label_column", "mean", "std")
        return {name: value for name in fields if (value := getattr(self, name))}


def load(name: str, **fields: Any) -> Task:
    """Load the task `name`; `fields` are those of a `TaskRequest`. Raises UserError as `load_request` does."""
    given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    if "data" in given:
        given["data"] = str(given["data"])  # a Path, say
    return load_request(TaskRequest(name, **given))


def load_request(request: TaskRequest) -> Task:
    """Load a task. Its splits are the same whatever the seed of the run, so that runs can be compared.

    Raises UserError for an unknown name, a limit below 1, fields of other tasks, data that cannot be found or read, and
    code of others that fails.
    """
    name = request.name
    if request.limit is not None and request.limit < 1:
        raise UserError(f"limit={request.limit} is out of range; it takes a whole number of examples, 1 or more.")
    _require_own_fields(request)
    if is_code(name):
        from compression.tasks import code

        return code.load(request)
    if name.startswith("hub/"):
        from compression.tasks.hub_dataset import hub_dataset

        return hub_dataset(request)
    if name not in TASKS and (kind := name.partition("/")[0]) in _OF_PATHS:
        name = kind
    if name not in TASKS:
        raise _unknown(name)
    make = TASKS.load(name)
    if name not in TASKS.own:
        from compression.tasks import code

        return code.make_task(make, request, TASKS[name])
    task: Task = make(request)
    return task


def _require_own_fields(request: TaskRequest) -> None:
    """Raise UserError for a field that has no use in the request's task."""
    name = request.name
    kind = name.partition("/")[0]
    is_language = kind in _OF_PATHS
    if (request.mean or request.std) and (kind in ("text", "glue", "hub") or is_language):
        raise UserError(f"mean and std normalize images; {name} has no use for them.")
    if request.context is not None and not is_language:
        raise UserError(f"context is the length of the windows of language models; {name} has no use for it.")
    if request.label_column and is_language:
        raise UserError(f"{name} has no column of labels to name; leave label_column empty.")
    if (request.text_columns or request.label_column) and name in TASKS.own and kind not in ("text", *_OF_PATHS):
        raise UserError(f"text_columns and label_column are for text and hub/NAME; {name} has its own columns.")


def is_code(name: str) -> bool:
    """Whether `name` is a function of somebody's own code: `./mine.py:make` or `package.module:make`."""
    return ":" in name


def short_name(name: str, data: str = "") -> str:
    """Return the name that runs on a task have: without the folders of code, with the name of a text file's data.

    `./code/mine.py:make` is `mine:make`; `text` with the data `data/reviews.csv` is `text/reviews`.
    """
    if is_code(name):
        place, _, function = name.rpartition(":")
        return f"{Path(place).stem if place.endswith('.py') else place.rpartition('.')[2]}:{function}"
    kind, _, place = name.partition("/")
    if kind in _OF_PATHS and place and name not in TASKS and not place.startswith("hub/"):
        name, data = kind, place
    if name in (*_TEXT, *_OF_PATHS) and data:
        path = Path(data).resolve()
        stem = path.stem if path.suffix.lower() in _TABLES else path.name
        return f"{name}/" + re.sub(r"[^\w.-]+", "-", stem)
    return name


def _unknown(name: str) -> UserError:
    """Return the refusal of a name that is no task's."""
    if Path(name).suffix.lower() in _TABLES:
        return UserError(f"{name} is data, and not a task: give task=text and data={name}.")
    if name.endswith(".py"):
        return UserError(f"{name} is a file, and a task is a function of it: task={name}:make, say.")
    return UserError(f"There is no task {name!r}; the tasks are {', '.join((*TASKS, *FORMS))}.")
