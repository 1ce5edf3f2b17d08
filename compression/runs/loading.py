"""Load a model by its name, URI or folder, and check that it fits the task."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression import models, tracking
from compression.errors import UserError, first_line
from compression.models import storage
from compression.nn.inputs import forward

if TYPE_CHECKING:
    from compression.tasks.task import Task


def open_model(spec: str, task: Task) -> nn.Module:
    """Load the model `spec`, on the CPU, in eval mode; UserError if it does not fit the task.

    `runs:/…`, `models:/…` and folders of the lab hold trained models; a hub name or a Hugging Face folder is taken
    with the weights it has; a name of the lab is a model yet to train.
    """
    return require_fit(stored_model(spec) or models.build(spec, task), task, spec)


def stored_model(spec: str) -> nn.Module | None:
    """Load a model that the lab stored at `runs:/…`, `models:/…` or in a folder; None if `spec` is neither."""
    if spec.startswith(("runs:/", "models:/")):
        with tempfile.TemporaryDirectory() as scratch:
            return storage.load(tracking.download(spec, Path(scratch)))
    return storage.load(Path(spec)) if (Path(spec) / storage.STRUCTURE_FILE).exists() else None


def built_name(spec: str) -> str:
    """The name of the architecture stored at a URI or in a folder of the lab; any other `spec` is a name itself."""
    if spec.startswith(("runs:/", "models:/")):
        whole = spec if spec.count("/") > 1 else f"{spec}/model"
        with tempfile.TemporaryDirectory() as scratch:
            structure = tracking.download(f"{whole}/{storage.STRUCTURE_FILE}", Path(scratch))
            return str(storage.read_metadata(structure.parent)["model"])
    folder = Path(spec)
    return str(storage.read_metadata(folder)["model"]) if (folder / storage.STRUCTURE_FILE).exists() else spec


@torch.no_grad()
def require_fit(model: nn.Module, task: Task, spec: str) -> nn.Module:
    """`model`, if it takes the task's inputs and has as many outputs as the task; else a UserError."""
    try:
        given = forward(model.cpu().eval(), task.example(2)).shape
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{spec} does not take the inputs of {task.name} ({first_line(error)}).") from error
    if tuple(given) != (2, task.outputs):
        raise UserError(
            f"{spec} gives {given[-1]} outputs and {task.name} has {task.outputs}; take a model trained on {task.name}."
        )
    return model
