"""The lab from Python: `import compression as lab`, then `lab.compress(model, "static", task)` for any `nn.Module`.

Nothing is tracked unless MLflow was told where (`mlflow.set_tracking_uri`, MLFLOW_TRACKING_URI) or an experiment is
named; what a run leaves lies in a folder that is deleted with its result, unless `Result.save` keeps it.
"""

from __future__ import annotations

import contextlib
import copy
import html
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compression import methods, models, params, tracking
from compression.deploy.onnx import files as onnx_files
from compression.errors import UserError, first_line
from compression.extras import explain_missing
from compression.methods.base import Method
from compression.models import storage
from compression.reporting import report
from compression.runs import baseline, chain, conclusion, loading
from compression.runs.job import Job, started
from compression.runs.job import load_task as task_of
from compression.runs.settings import Settings
from compression.tasks.own import task
from compression.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CompressionError = UserError
Recipe = str | Method | Sequence[str | Method]
EXPORTED = "model.pt2"  # in a saved folder: the model as torch.export.load reads it, without the lab

__all__ = [
    "CompressionError",
    "Page",
    "Result",
    "Tuned",
    "compress",
    "load",
    "load_task",
    "measure",
    "task",
    "tune",
]


class Page(str):
    """An HTML page, which a notebook shows."""

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self)}" style="width: 100%; height: 40em; border: 0"></iframe>'


@dataclass(frozen=True, repr=False)
class Result:
    """A compressed model, and what was measured before and after."""

    model: nn.Module  # on the CPU, in eval mode
    task: Task
    content: dict[str, Any]  # everything that the report shows, as in comparison.json
    folder: Path  # report.html, model.onnx, figures, tables; deleted with the result
    scratch: Any = field(default=None)  # keeps the folder

    @property
    def figures(self) -> dict[str, float]:
        """The metrics by name; those before are `<name>_before`."""
        return dict(self.content["metrics"])

    @property
    def warnings(self) -> list[str]:
        """What the run warned of."""
        return list(self.content["warnings"])

    def report(self, path: str | Path = "") -> Page:
        """The report as a page, which a notebook shows; with a `path`, it is written there too."""
        page = Page((self.folder / "report.html").read_text(encoding="utf-8"))
        if path:
            _path(path, "path").write_text(page, encoding="utf-8")
        return page

    def save(self, folder: str | Path) -> Path:
        """Write the model, its ONNX file, a torch.export file and the report to `folder`.

        `load` reads the folder, and `torch.export.load(folder / "model.pt2").module()` does without the lab. Raises
        CompressionError if the folder has other content, or a file cannot be written.
        """
        to = _path(folder, "folder")
        if to.exists() and not to.is_dir():
            raise UserError(f"{to} is a file: name a folder.")
        if to.exists() and any(to.iterdir()) and not (to / storage.STRUCTURE_FILE).exists():
            raise UserError(f"{to} is not empty, and holds no model of the lab: name another folder.")
        # First, so that a model that torch.export cannot follow leaves no half of a folder.
        save_exported(self.model, self.task, self.folder / EXPORTED)
        try:
            shutil.copytree(self.folder / "model", to, dirs_exist_ok=True)
            onnx_files.copy(self.folder / "model.onnx", to / "model.onnx")
            for name in (EXPORTED, "report.html", "comparison.json"):
                shutil.copyfile(self.folder / name, to / name)
        except OSError as error:
            raise UserError(f"Could not write the model to {to}: {first_line(error)}.") from error
        return to

    def __repr__(self) -> str:
        return f"{self.content['title']}\n\n{report.comparison_table(self.content)}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def save_exported(model: nn.Module, task: Task, path: Path) -> None:
    """Write the model as a torch.export file, for batches of any size.

    Raises CompressionError if torch.export cannot follow it.
    """
    example, open_size = task.example(2), torch.export.Dim.AUTO
    given: dict[str, Any] = {"args": (example,), "dynamic_shapes": [{0: open_size}]}
    if isinstance(example, dict):
        sizes = {key: {0: open_size, 1: open_size} for key in example}
        given = {"args": (), "kwargs": example, "dynamic_shapes": sizes}
    try:
        with torch.no_grad():
            torch.export.save(torch.export.export(model.eval(), **given), path)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"torch.export cannot write {type(model).__name__}: {first_line(error)}") from error


def compress(model: nn.Module | str, recipe: Recipe, task: Task | str, **settings: Any) -> Result:
    """Apply the steps of `recipe` to a copy of `model`, measured before and after each.

    `model` is any module that takes the task's inputs and returns logits, or a model by its name, URI or folder, as
    `--baseline` takes it. A recipe is the command line's text, a step (`Structured(sparsity=0.5)`), or a sequence of
    both. `task` is made by `lab.task`, or is a name that `lab.load_task` knows. `settings` are the fields of `Settings`
    (seed, device, threads, …) and `track`: whether MLflow keeps the run; if it is left out, whether a tracking URI or
    an experiment is set. Raises CompressionError, with one sentence, for what cannot be done.
    """
    steps = parse_steps(recipe)
    methods.check_order(steps)
    with _opened(model, task, "compress", steps, settings) as opened:
        steps = opened.job.resolved(steps)
        context = baseline.make_context(opened.job, opened.original, steps)
        steps[0].check(opened.original, context)
        content, compressed = chain.ChainRunner(opened.job, steps, context, []).run()
        return opened.result(compressed, content)


def measure(model: nn.Module | str, task: Task | str, **settings: Any) -> dict[str, float]:
    """The metrics of a model on the task's test split, and of its ONNX file; `settings` as for `compress`."""
    with _opened(model, task, "evaluate", [], settings) as opened:
        content = conclusion.measure_single(opened.job, [], copy.deepcopy(opened.original), 0.0)
        return dict(content["metrics"])


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search: the Pareto front on the validation split, and its best models on the test split."""

    front: list[dict[str, Any]]  # a row for each trial: number, objectives, values of the searched fields
    results: dict[str, Result]  # smallest, fastest, knee, best_<metric>


def tune(
    model: nn.Module | str,
    recipe: str,
    task: Task | str,
    trials: int = 20,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Tuned:
    """Search the fields that a recipe leaves out: `lab.tune(model, "structured+finetune:epochs=2+static", task)`.

    `options` are the fields of `compression tune`: objectives, constraints, space, sampler, timeout; `settings` are as
    for `compress`, and so is whether MLflow keeps the search: then each trial is a child run. Raises CompressionError,
    with one sentence, for what cannot be done.
    """
    with explain_missing():
        from compression.tuning import in_memory
        from compression.tuning.config import TuningConfig
        from compression.tuning.space import build_space
    if not isinstance(recipe, str):
        raise UserError("tune takes its recipe as text, which tells the fields that are given from those to search.")
    _require_known(options or {}, params.fields(TuningConfig), "option")
    config = TuningConfig(**({"trials": trials} | (options or {})))
    space = build_space(recipe, config.space)
    methods.check_order(space.steps)
    with _opened(model, task, "tune", space.steps, settings) as opened:

        def keep(job: Job, model: nn.Module, content: dict[str, Any]) -> Result:
            return replace(opened, job=job).result(model, content)

        return Tuned(*in_memory.search(opened.job, opened.original, space, config, keep))


def load(folder: str | Path, like: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load a model that `Result.save` or a run left in `folder`, on the CPU, in eval mode.

    A model of your own code needs `like`: the uncompressed model, or the class or function that makes it. Raises
    CompressionError if the folder holds no whole model, or if `like` is missing or another architecture.
    """
    return storage.load(_path(folder, "folder"), like)


def _path(value: str | Path, name: str) -> Path:
    """The path that an argument called `name` gives. Raises UserError for a value of another type."""
    if not isinstance(value, (str, Path)):
        raise UserError(f"{name} is the path of a file or folder, as text or a Path, not {value!r}.")
    return Path(value)


def load_task(
    name: str,
    *,
    data: str | Path = "",
    limit: int | None = None,
    model: str = "",
    context: int | None = None,
    text_columns: Sequence[str] = (),
    label_column: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Task:
    """Load a task of the command line by its name, such as `cifar10`; see `compression --help`.

    `data` is the folder with the data, or the file, `limit` the largest number of examples in each split, and `model`
    the model whose tokenizer encodes the text, for language models in windows of `context` tokens. `text_columns` and
    `label_column` name the columns of a table, `mean` and `std` normalize images otherwise than the task does.
    """
    columns: dict[str, Any] = {"context": context, "text_columns": text_columns, "label_column": label_column}
    given: dict[str, Any] = {"task": name, "data": str(data), "limit": limit, "model": model, "mean": mean, "std": std}
    return task_of(Settings(**given, **columns))


def parse_steps(recipe: Recipe) -> list[Method]:
    """The steps of a recipe in any of its forms. Raises CompressionError if one is wrong."""
    if isinstance(recipe, str):
        return list(methods.parse(recipe))
    if isinstance(recipe, Method):
        return [recipe]
    if not isinstance(recipe, Sequence) or not recipe:
        raise UserError(
            f"A recipe is text, a step such as Structured(sparsity=0.5), or a list of them; not {recipe!r}."
        )
    return [step for part in recipe for step in parse_steps(part)]


@dataclass(frozen=True)
class _Opened:
    """A run at work, the model it starts from, and the folder that outlives it."""

    job: Job
    original: nn.Module
    scratch: tempfile.TemporaryDirectory[str]

    def result(self, model: nn.Module, content: dict[str, Any]) -> Result:
        """The result, with a copy of what the run left."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch.name)) / "result"
        shutil.copytree(self.job.run.artifact_folder, folder)
        return Result(model.cpu().eval(), self.job.task, content, folder, self.scratch)


@contextlib.contextmanager
def _opened(
    model: nn.Module | str, task: Task | str, stage: str, steps: Sequence[Method], given: dict[str, Any]
) -> Iterator[_Opened]:
    task = load_task(task) if isinstance(task, str) else task
    if not isinstance(task, Task):
        raise UserError(f"A {type(task).__name__} is no task: make one with task(train=…, test=…) or load_task(NAME).")
    name = model if isinstance(model, str) else type(model).__name__
    track, settings = given.pop("track", None), _settings(given)
    scratch = tempfile.TemporaryDirectory(prefix="compression-")
    folder = None if (_is_tracking_set(settings) if track is None else track) else Path(scratch.name) / "run"
    with started(replace(settings, model=name), stage, steps, task, folder) as job:
        yield _Opened(job, _original(model, task), scratch)


def _settings(given: dict[str, Any]) -> Settings:
    """Settings with these fields. Raises CompressionError for one that there is not."""
    allowed = [name for name in params.fields(Settings) if name not in ("task", "model", "baseline", "data", "limit")]
    _require_known(given, ["track", *allowed], "setting")
    return Settings(**given)


def _require_known(given: dict[str, Any], allowed: Collection[str], what: str) -> None:
    """Raise CompressionError for a name that there is not."""
    for name in given:
        if name not in allowed:
            raise UserError(f"There is no {what} {name!r}; there are {', '.join(allowed)}.")


def _is_tracking_set(settings: Settings) -> bool:
    return bool(settings.experiment or tracking.is_configured())


def _original(model: nn.Module | str, task: Task) -> nn.Module:
    """The model before its first step: a copy, frozen, with the spec that it is stored by."""
    if not isinstance(model, (str, nn.Module)):
        raise UserError(f"{model!r} is no model: give an nn.Module, made, or a model's name, URI or folder.")
    if isinstance(model, str):
        return loading.open_model(model, task).requires_grad_(False)
    try:
        copied = copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error
    loading.require_fit(copied, task, type(model).__name__)
    return models.with_spec(copied, task.input_shape, task.example(2)).requires_grad_(False)
