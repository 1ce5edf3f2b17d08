"""The conditions of a training: everything that its weights follow from, by name. A checkpoint keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression import params
from compression.errors import UserError
from compression.tasks.splits import splits_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import nn

    from compression.training.context import Context
    from compression.training.hyperparameters import Training

Conditions = dict[str, Any]  # numbers, texts and tuples of them: what a checkpoint can hold


def step_conditions(model: nn.Module, context: Context) -> Conditions:
    """The conditions of whatever is made of `model`, trained or not: those of the run and the method."""
    task, accelerator = context.task, context.accelerator
    return {
        "seed": context.seed,
        "task": task.name,
        # somebody's own task may have no digest: then all of its tensors are hashed
        "data": task.digest or splits_digest(task.splits().values()),
        "network": f"{type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters",
        "precision": str(accelerator.mixed_precision),
        "processes": int(accelerator.num_processes),
        **context.conditions,
    }


def training_conditions(model: nn.Module, context: Context, training: Training) -> Conditions:
    """The conditions of a training of `model`: those of the run, and what the loop itself goes by."""
    return {**params.values(training), **step_conditions(model, context)}


def differences(kept: Conditions, given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The conditions that both have with other values: name -> (kept, given).

    What only one of them has follows from the others: a field, say, that has an effect with one value of another.
    """
    return {name: (kept[name], given[name]) for name in given if name in kept and kept[name] != given[name]}


def require_equal(path: Path, kept: Conditions, given: Mapping[str, Any], besides: Collection[str] = ()) -> None:
    """Raise UserError if the checkpoint at `path` was `kept` by a training with other conditions than those `given`.

    The sentence names each difference but those in `besides`, with both values.
    """
    changed = {name: pair for name, pair in differences(kept, given).items() if name not in besides}
    if not changed:
        return
    before, now = (", ".join(f"{name}={_shown(pair[i])}" for name, pair in changed.items()) for i in (0, 1))
    only = "; more epochs need schedule=constant and warmup=0, a single training and no change in its course"
    raise UserError(
        f"The checkpoint {path} is of a training with {before}, and this one has {now}: resume with the former, or "
        f"start again without resume{only if set(changed) == {'epochs'} else ''}."
    )


def _shown(value: Any) -> str:
    return "none" if value in (None, "", ()) else str(value)
