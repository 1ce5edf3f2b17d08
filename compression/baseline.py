"""Models by address: a run, a registered model, a folder; and whether they fit the task."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from compression import artifacts, models, tracking
from compression.checkpoint import first_line
from compression.errors import UserError
from compression.tasks.task import Task, forward


def opened(address: str, task: Task) -> nn.Module:
    """The model at `address`, on the CPU, in eval mode; UserError if it does not fit the task."""
    if Path(address).is_dir():
        return require_fit(artifacts.load(Path(address)), task, address)
    with tempfile.TemporaryDirectory() as scratch:
        return require_fit(artifacts.load(tracking.download(address, Path(scratch))), task, address)


def student(spec: str, task: Task) -> nn.Module:
    """The model at an address; a plain name is an untrained model (a hub name: with its pretrained weights)."""
    return opened(spec, task) if is_address(spec) else require_fit(models.build(spec, task), task, spec)


def is_address(spec: str) -> bool:
    return spec.startswith(("runs:/", "models:/")) or (Path(spec) / artifacts.STRUCTURE).exists()


@torch.no_grad()
def require_fit(model: nn.Module, task: Task, spec: str) -> nn.Module:
    """`model`, if it takes the task's inputs and gives as many outputs as the task has; else a UserError."""
    try:
        given = forward(model.cpu().eval(), task.example(2)).shape
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{spec} does not take the inputs of {task.name} ({first_line(error)}).") from error
    if tuple(given) != (2, task.outputs):
        raise UserError(
            f"{spec} gives {given[-1]} outputs and {task.name} has {task.outputs}; take a model trained on {task.name}."
        )
    return model
