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
from compression.tasks import contract, short_name
from compression.tasks.splits import splits_digest
from compression.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from compression.tasks import TaskRequest


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
    with _explained(place):
        takes_request = _takes_request(make)
    if not takes_request and (given := request.about_data()):
        named = " and ".join(f"{name}=" for name in given)
        verb = "have" if len(given) > 1 else "has"
        raise UserError(f"{place} takes no argument, so that {named} {verb} no effect; let it take a TaskRequest.")
    with _explained(place):
        task = make(request) if takes_request else make()
    if not isinstance(task, Task):
        raise UserError(f"{place} returns a {type(task).__name__}; it has to return a compression.tasks.task.Task.")
    task = replace(task, name=short_name(request.name, request.data))
    with _explained(place):
        if request.limit is not None and not task.is_limited:
            task = _limited(task, request.limit)
        task = contract.complete(task, place)
    return replace(task, digest=_digest(task, make, request), source=task.source or place)


def _takes_request(make: Callable[..., Any]) -> bool:
    """Whether a function is to be given the request: it needs an argument, or has one called `request`."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(make).parameters.values() if p.kind in positional]
    return any(p.name == "request" or p.default is p.empty for p in parameters)


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


def _digest(task: Task, make: Callable[..., Any], request: TaskRequest) -> str:
    """Return a checksum of the examples, of the source (another loss is another task), and of what it was asked for.

    What `prepare` does with a requested mean, say, is seen in none of the examples.
    """
    total = hashlib.sha256(splits_digest([*task.splits().values(), *task.further_test_splits.values()]).encode())
    if source := inspect.getsourcefile(make):
        total.update(Path(source).read_bytes())
    if asked := {name: value for name, value in request.about_data().items() if name != "data"}:
        total.update(repr(asked).encode())
    return total.hexdigest()[:16]
