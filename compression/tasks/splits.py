"""Cutting data into splits that are the same in every run, and the checksum that shows it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compression.tasks.task import Split

SEED = 0  # of the splits alone; the seed of a run changes nothing here


def shuffled(n: int) -> Tensor:
    """The numbers below `n` in a fixed random order: its beginning is a fair sample of the whole."""
    # RandomState's stream is frozen by NumPy's policy (NEP 19); torch's may change between versions.
    return torch.from_numpy(np.random.RandomState(SEED).permutation(n))


def cut(n: int) -> tuple[Tensor, Tensor]:
    """Indices of train and validation: a tenth of the `n` examples, at most 5,000, for validation."""
    order, held_out = shuffled(n), min(max(n // 10, 1), 5000)
    return order[held_out:], order[:held_out]


def digest(splits: Iterable[Split]) -> str:
    """A short SHA-256 over every tensor of the splits: shape, type and bytes."""
    total = hashlib.sha256()
    for split in splits:
        inputs = split.inputs if isinstance(split.inputs, dict) else {"": split.inputs}
        for name, tensor in [*sorted(inputs.items()), ("targets", split.targets)]:
            total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            total.update(tensor.cpu().numpy().tobytes())
    return total.hexdigest()[:16]
