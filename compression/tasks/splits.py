"""Splits that are the same in every run, and the checksum that proves it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compression.tasks.images import Normalization
    from compression.tasks.task import Split

SPLIT_SEED = 0  # independent of the seed of a run


def fixed_permutation(n: int) -> Tensor:
    """Return the indices 0 to n-1 `(n,)` in a fixed random order; the first ones are a random sample of all."""
    # RandomState's stream is frozen by NumPy's policy (NEP 19); torch's may change between versions.
    return torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(n))


def train_validation_indices(n: int) -> tuple[Tensor, Tensor]:
    """Divide `n` examples into train and validation: a tenth, at most 5,000, is for validation.

    Raises UserError if there are fewer than two.
    """
    if n < 2:
        raise UserError(
            f"The training data holds {n or 'no'} example; a task takes two or more, to train and validate."
        )
    order, held_out = fixed_permutation(n), min(max(n // 10, 1), 5000)
    return order[held_out:], order[:held_out]


def splits_digest(
    splits: Iterable[Split], normalization: Normalization | None = None, default: Normalization | None = None
) -> str:
    """Return a SHA-256 over names, shapes, types and bytes of all tensors, cut to 16 hexadecimal digits.

    A `normalization` other than the task's `default` counts too: with it, the examples are others for a model.
    """
    total = hashlib.sha256(b"" if normalization == default else repr(normalization).encode())
    for split in splits:
        inputs = split.inputs if isinstance(split.inputs, dict) else {"": split.inputs}
        for name, tensor in [*sorted(inputs.items()), ("targets", split.targets)]:
            total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            total.update(tensor.cpu().numpy().tobytes())
    return total.hexdigest()[:16]
