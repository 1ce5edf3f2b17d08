"""Checkpoints: the state of a training after every epoch, from which a killed run resumes to the same weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.errors import UserError, first_line
from compression.files import replace_file
from compression.training.conditions import require_equal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from compression.training.conditions import Conditions
    from compression.training.context import Context


@dataclass(frozen=True)
class Best:
    """The weights of the epoch with the highest quality so far (`Task.gain`); none yet if `state` is None."""

    quality: float = float("-inf")
    state: dict[str, Tensor] | None = None

    def updated(self, quality: float, model: nn.Module) -> Best:
        """The better of this and `model`, whose weights are then copied; the earlier one on a tie."""
        if not quality > self.quality:
            return self
        # A state dict holds the weights themselves, which train on.
        return Best(quality, {name: value.detach().clone() for name, value in model.state_dict().items()})

    def restore(self, model: nn.Module) -> None:
        """Load the kept weights into `model`; nothing happens if none were kept."""
        if self.state is not None:
            model.load_state_dict(self.state)


class Checkpoint:
    """The file `<title>.pt` in the run's folder; one of the run being resumed is read at once, if there is one.

    `conditions` are those of this training. `has_same_start(epochs, done)` says whether the first `done` epochs of a
    training of `epochs` epochs would be those of this one.
    """

    def __init__(
        self,
        title: str,
        context: Context,
        conditions: Conditions,
        has_same_start: Callable[[int, int], bool],
        model: nn.Module,
        optimizer: Any,
        scheduler: Any,
    ):
        self.path = context.folder / f"{title}.pt"
        self.context, self.conditions, self.has_same_start = context, conditions, has_same_start
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.epoch, self.best = 0, Best()
        if context.resume is not None and (context.resume / self.path.name).exists():
            self.read(context.resume / self.path.name)

    def write(self, epoch: int, best: Best) -> None:
        """Save the state after `epoch` epochs, in the main process."""
        if not self.context.accelerator.is_main_process:
            return
        content = {
            "conditions": self.conditions,
            "epoch": epoch,
            "recorded": self.context.epochs.value,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "best": {"quality": best.quality, "state": best.state},
            # Dropout draws from it. Order and augmentation need no state: they follow from seed and epoch.
            "random": torch.get_rng_state(),
        }
        save_whole(content, self.path)

    def read(self, path: Path) -> None:
        """Restore model, optimizer, scheduler and random state; UserError if they are another training's."""
        content = load_checkpoint(path)
        try:
            epoch, kept = content["epoch"], content["conditions"]
            may_go_on = self.has_same_start(kept["epochs"], epoch)
            # Before anything is loaded: a refusal leaves model and optimizer as they were.
            require_equal(path, kept, self.conditions, besides=("epochs",) if may_go_on else ())
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scheduler.load_state_dict(copy.deepcopy(content["scheduler"]))
            torch.set_rng_state(content["random"])
            self.epoch, self.best, self.context.epochs.value = epoch, Best(**content["best"]), content["recorded"]
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"The checkpoint {path} is of another model or training, or damaged ({first_line(error)}); "
                "resume with the task, model and method of the run it belongs to, or start again without resume."
            ) from error

    def kept(self) -> str:
        """Name the checkpoint of the last whole epoch in a sentence; empty if there is none."""
        return f"The checkpoint of the last whole epoch is kept: {self.path}." if self.path.exists() else ""


def save_whole(content: dict[str, Any], path: Path) -> None:
    """Write with torch.save so that `path` is either the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replace_file(path) as half:
            torch.save(content, half)
    # On a full disk, torch's own writer raises RuntimeError.
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Could not write {path}: {first_line(error)}; free some space or set COMPRESSION_HOME."
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: tensors, numbers and texts alone, so nothing is executed.

    Raises UserError if it is damaged, or of a version that did not keep the conditions of a training.
    """
    try:
        # On the CPU: the random state has to be there, and what is loaded is copied to where the training runs.
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        conditions = content.get("conditions")
    except Exception as error:
        raise UserError(
            f"The checkpoint {path} cannot be read ({first_line(error)}); start again without resume."
        ) from error
    if not isinstance(conditions, dict):
        raise UserError(
            f"The checkpoint {path} is of version 0.1 of the lab, or damaged: it does not say how it was trained, so "
            "it cannot be resumed; start again without resume."
        )
    return content
