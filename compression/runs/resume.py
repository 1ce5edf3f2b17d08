"""Resume a killed run: find its checkpoints, and refuse a command that is not the one it was started with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression import methods, tracking
from compression.errors import UserError
from compression.training.checkpoint import load_checkpoint
from compression.training.conditions import require_equal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from compression.methods.base import Method
    from compression.runs.job import Job
    from compression.runs.settings import Settings

# Where the baseline is not named it is not known before it is found or trained; whether another number of epochs can go
# on is for the training itself to say. Both are compared when it reads its checkpoint.
COMPARED_LATER = ("baseline", "epochs")


def run_conditions(job: Job, steps: Sequence[Method]) -> dict[str, Any]:
    """The conditions of all trainings of a run: its settings, and the fields of its `steps`, as its parameters."""
    settings = job.settings
    found = {
        "command": job.stage,
        "task": job.task.name,
        "model": job.model_name,
        "baseline": settings.baseline,
        "limit": settings.limit,
        "data": job.task.digest,
        "seed": settings.seed,
        "steps": methods.text(steps, brief=True),
    }
    for label, step in zip(methods.labels(steps), steps, strict=True):
        prefix = f"{label}." if len(steps) > 1 else ""
        found |= {prefix + name: value for name, value in step.active_values().items()}
    return found


def require_same_command(job: Job, steps: Sequence[Method]) -> None:
    """Raise UserError if the run to resume, where there is one, was started with other settings or steps."""
    folder = checkpoint_folder(job.settings)
    if folder is not None:
        # Any of them: all trainings of a run keep the run's conditions. The first by name is always the same one.
        path = min(folder.glob("*.pt"))
        require_equal(path, load_checkpoint(path)["conditions"], run_conditions(job, steps), besides=COMPARED_LATER)


def checkpoint_folder(settings: Settings) -> Path | None:
    """The folder with the checkpoints of the run to resume; UserError if it is not on this machine."""
    if not settings.resume:
        return None
    folder = tracking.run_folder(settings.resume)
    if not any(folder.glob("*.pt")):
        raise UserError(
            f"There is no checkpoint of the run {settings.resume} in {folder}; resume on the machine it ran on, "
            "with the same COMPRESSION_HOME."
        )
    return folder
