"""Load a model by its name, URI or folder, and check that it fits the task."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression import models, tracking
from compression.errors import UserError, first_line
from compression.models import classes, storage
from compression.nn.inputs import forward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compression.nn.inputs import Inputs
    from compression.tasks.task import Split, Task


def open_model(spec: str, task: Task) -> nn.Module:
    """Load the model `spec`, on the CPU, in eval mode; UserError if it does not fit the task.

    `runs:/…`, `models:/…` and folders of the lab hold trained models; a hub name or a Hugging Face folder is taken
    with the weights it has; a name of the lab is a model yet to train.
    """
    with stored_folder(spec) as folder:
        if folder is None:
            return require_fit(models.build(spec, task), task, spec)
        model = require_fit(storage.load(folder), task, spec)
        _require_same_tokens(folder, task, spec)
        _match_metadata(model, folder, task, spec)
        return model


def stored_model(spec: str) -> nn.Module | None:
    """Load a model that the lab stored at `runs:/…`, `models:/…` or in a folder; None if `spec` is neither."""
    with stored_folder(spec) as folder:
        return None if folder is None else storage.load(folder)


@contextlib.contextmanager
def stored_folder(spec: str) -> Iterator[Path | None]:
    """The folder of a model that the lab stored, for as long as the block runs; None if `spec` is no such model."""
    if spec.startswith(("runs:/", "models:/")):
        with tempfile.TemporaryDirectory() as scratch:
            yield tracking.download(spec, Path(scratch))
    else:
        yield Path(spec) if (Path(spec) / storage.STRUCTURE_FILE).exists() else None


def built_name(spec: str) -> str:
    """The name of the architecture stored at a URI or in a folder of the lab; any other `spec` is a name itself."""
    if spec.startswith(("runs:/", "models:/")):
        whole = spec if spec.count("/") > 1 else f"{spec}/model"
        with tempfile.TemporaryDirectory() as scratch:
            structure = tracking.download(f"{whole}/{storage.STRUCTURE_FILE}", Path(scratch))
            return str(storage.read_metadata(structure.parent)["model"])
    folder = Path(spec)
    return str(storage.read_metadata(folder)["model"]) if (folder / storage.STRUCTURE_FILE).exists() else spec


def _require_same_tokens(folder: Path, task: Task, spec: str) -> None:
    """Raise UserError if the stored model reads other tokens than the task's: its ids would mean other words."""
    file = folder / "tokenizer.json"
    if task.tokenizer is None or not file.exists():
        return
    stored = json.loads(file.read_text(encoding="utf-8"))["model"].get("vocab", {})
    ids = stored if isinstance(stored, dict) else {token: i for i, (token, *_) in enumerate(stored)}
    known = task.tokenizer.get_vocab()
    if any(known.get(token) != i for token, i in ids.items()):
        raise UserError(
            f"{spec} was trained on texts of another vocabulary than those of {task.name} are encoded with; take a "
            f"model trained on {task.name}, or name the one whose tokenizer it used as model=NAME."
        )


@torch.no_grad()
def require_fit(model: nn.Module, task: Task, spec: str) -> nn.Module:
    """`model`, if it takes the task's inputs and has as many outputs as the task; else a UserError."""
    model.cpu().eval()
    count = min(2, len(task.test))
    try:
        given = tuple(forward(model, task.example(count)).shape)
        for inputs in _extreme_texts(task):
            forward(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{spec} does not take the inputs of {task.name} ({first_line(error)}).") from error
    if given[:1] != (count,):
        raise UserError(f"{spec} gives outputs of the shape {given} for {count} examples; take one that answers each.")
    if given[1:] != (task.outputs,):
        outputs = " x ".join(map(str, given[1:])) or "no"
        raise UserError(
            f"{spec} gives {outputs} outputs and {task.name} has {task.outputs}; take a model trained on {task.name}."
        )
    return model


def _extreme_texts(task: Task) -> Iterator[Inputs]:
    """The longest text of each split and the one with the largest token id: a model may have too few embeddings."""
    splits: list[Split] = [*task.splits().values(), *task.further_test_splits.values()]
    for split in splits:
        if isinstance(split.inputs, dict) and "input_ids" in split.inputs:
            ids: Tensor = split.inputs["input_ids"]
            longest = split.inputs.get("attention_mask", torch.ones_like(ids)).sum(1).argmax()
            rows = torch.stack([longest, ids.amax(1).argmax()])
            yield next(split.select(rows).to("cpu").batches(2))[0]


@torch.no_grad()
def _match_metadata(model: nn.Module, folder: Path, task: Task, spec: str) -> None:
    """Compare what is stored beside a model with the task, and put the model's outputs into the order of its labels.

    Raises UserError if the model was trained on other classes or differently normalized images.
    """
    stored = storage.read_metadata(folder)
    if stored.get("labels") and task.labels:
        classes.match_outputs(model, [str(label) for label in stored["labels"]], task, spec, task.example(2))
        if (config := getattr(model, "config", None)) is not None:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {label: i for i, label in enumerate(task.labels)}
    if (used := stored.get("normalization")) and task.normalization and used != task.normalization.described():
        raise UserError(
            f"{spec} was trained on images normalized with mean={_slashed(used['mean'])} and "
            f"std={_slashed(used['std'])}; give these to {task.name}."
        )


def _slashed(values: list[float]) -> str:
    """A list of numbers as a field takes it."""
    return "/".join(f"{value:g}" for value in values)
