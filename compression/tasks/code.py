"""Tasks from somebody's own code: a function in a file, `./mine.py:make`, or in a module, `package.module:make`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compression.errors import UserError, first_line
from compression.tasks import short_name
from compression.tasks.splits import splits_digest
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from compression.tasks import TaskRequest

TRAINING = {  # the hyperparameters that a task's own `training` leaves out
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "schedule": "onecycle",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
}


def load(request: TaskRequest) -> Task:
    """Import the function that the request's name gives, and make its task.

    Raises UserError if there is no such file, module or function, and for whatever it raises, with its place.
    """
    place, _, name = request.name.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"{request.name} is no function: write ./mine.py:make or package.module:make.")
    module = _import_file(Path(place), request.name) if place.endswith(".py") else _import_module(place, request.name)
    make = getattr(module, name, None)
    if not callable(make):
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise UserError(f"{place} has no function {name!r}; it has {', '.join(functions) or 'none'}.")
    return make_task(make, request, request.name)


def make_task(make: Callable[..., Any], request: TaskRequest, place: str) -> Task:
    """Call `make`, with the request if it takes an argument, and check the task that it returns.

    Its name becomes the short name of the request; what it leaves out (digest, source, hyperparameters) is filled in,
    and a limit that it did not heed is kept. Raises UserError, which names `place`, for whatever it raises.
    """
    takes_request = bool(inspect.signature(make).parameters)
    if not takes_request and (request.data or request.text_columns or request.label_column):
        raise UserError(f"{place} takes no argument, so that data= has no effect; let it take a TaskRequest.")
    with _explained(place):
        task = make(request) if takes_request else make()
    if not isinstance(task, Task):
        raise UserError(f"{place} returns a {type(task).__name__}; it has to return a compression.tasks.task.Task.")
    task = replace(task, name=short_name(request.name, request.data), training={**TRAINING, **task.training})
    if request.limit is not None and not task.is_limited:
        task = _limited(task, request.limit)
    _check(task, place)
    return replace(task, digest=_digest(task, make), source=task.source or place)


def _import_file(file: Path, name: str) -> ModuleType:
    """Run a Python file; its folder is searched for its own imports, after everything that is installed."""
    if not file.is_file():
        raise UserError(f"There is no file {file}; task={name} is relative to the folder {Path.cwd()}.")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"compression_task_{file.stem}", file.resolve())
    assert spec is not None  # every .py file has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their own module up
    with _explained(str(file)):
        spec.loader.exec_module(module)
    return module


def _import_module(place: str, name: str) -> ModuleType:
    """Import a module that is installed, or in the current folder."""
    if not all(part.isidentifier() for part in place.split(".")):
        raise UserError(f"{name} is neither a file (./mine.py:make) nor a module (package.module:make).")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    with _explained(place):
        return importlib.import_module(place)


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn whatever somebody's code raises into a sentence with the place; the code's own UserErrors pass."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{place} failed: {type(error).__name__}: {first_line(error)}{_line(error)}.") from error


def _line(error: BaseException) -> str:
    """Return the file and line that an error comes from, in brackets: the last that is neither ours nor installed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    theirs = [f for f in frames if not _is_library(f.filename)]
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""


def _is_library(file: str) -> bool:
    """Whether a file is the lab's, Python's or an installed package's."""
    ours, standard = Path(__file__).parents[1], Path(traceback.__file__).parent
    return "site-packages" in file or Path(file).is_relative_to(ours) or Path(file).is_relative_to(standard)


def _limited(task: Task, limit: int) -> Task:
    """Cut every split to its first `limit` examples."""
    train, validation, test, *further = (
        split.select(torch.arange(min(limit, len(split))))
        for split in (*task.splits().values(), *task.further_test_splits.values())
    )
    named = dict(zip(task.further_test_splits, further, strict=True))
    return replace(task, train=train, validation=validation, test=test, further_test_splits=named, is_limited=True)


def _check(task: Task, place: str) -> None:
    """Raise UserError for splits, classes or a metric that runs would stumble over later."""
    for name, split in task.splits().items():
        if not isinstance(split, Split) or not len(split):
            raise UserError(f"The {name} split of {place} holds no examples.")
        inputs = split.inputs.values() if isinstance(split.inputs, dict) else [split.inputs]
        if any(len(tensor) != len(split) for tensor in inputs):
            raise UserError(f"The {name} split of {place} has {len(split)} targets and another number of inputs.")
        _check_targets(task, name, split, place)
    if task.labels and len(task.labels) != task.outputs:
        raise UserError(f"{place} has {task.outputs} outputs and {len(task.labels)} labels; give a name to each class.")
    with _explained(place):
        metrics = task.compute_metrics(torch.zeros(len(task.test), task.outputs), task.test.targets)
    if task.metric not in metrics:
        raise UserError(f"compute_metrics of {place} gives {', '.join(metrics)}, and not its metric {task.metric!r}.")


def _check_targets(task: Task, name: str, split: Split, place: str) -> None:
    """Raise UserError for targets that are no numbers, or no classes of the task."""
    targets = split.targets
    if task.outputs == 1:
        if not targets.is_floating_point() or not bool(targets.isfinite().all()):
            raise UserError(f"The {name} targets of {place} have to be finite float32 numbers, as it has one output.")
    elif targets.dtype != torch.int64 or bool((targets < 0).any() or (targets >= task.outputs).any()):
        raise UserError(f"The {name} targets of {place} have to be int64 classes from 0 to {task.outputs - 1}.")


def _digest(task: Task, make: Callable[..., Any]) -> str:
    """Return a checksum of the examples and of the source: another loss function is another task."""
    total = hashlib.sha256(splits_digest([*task.splits().values(), *task.further_test_splits.values()]).encode())
    if source := inspect.getsourcefile(make):
        total.update(Path(source).read_bytes())
    return total.hexdigest()[:16]
