"""Models without weights: what a stranger's description of one would take is known before anything is allocated."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from compression.files import require_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Shapes = dict[str, list[int]]

# The layers and parameters that a model has for each tensor of its file (BERT: 1.7), and what any model may have.
PARTS_PER_TENSOR, MIN_PARTS = 20, 5_000
# The memory that a model takes, before and after compression, for each byte of its file: 65 with weights of one bit,
# whose values are held as float32. VGG-16 takes 528 MB before it is pruned.
BYTES_PER_BYTE, MIN_BYTES = 128, 2**29
# Entries of a config that count something: a list of that length is made of each before any layer is.
COUNTS, MAX_COUNT = re.compile(r"num|^n_|layer|depth|block|label"), 2**20


def stored_shapes(file: Path) -> Shapes:
    """Return the shape of every tensor in a safetensors file, by name; reads its header alone.

    Raises OSError or SafetensorError if the file is missing or damaged.
    """
    require_regular(file)
    with safe_open(file, "pt") as opened:
        return {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - a file, no dict


def require_countable(config: Mapping[str, Any]) -> None:
    """Raise ValueError if an entry of a config, at any depth, counts more than MAX_COUNT layers, labels or the like."""
    for name, value in config.items():
        counts = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, (int, float))]
        if isinstance(value, dict):
            require_countable(value)
        elif COUNTS.search(name) and max(counts, default=0) > MAX_COUNT:
            raise ValueError(f"{name} is larger than {MAX_COUNT:,}")


@contextlib.contextmanager
def without_weights(tensors: int) -> Iterator[None]:
    """Within the block, this thread builds modules on the device `meta`, where tensors have a shape and no memory.

    Raises ValueError as soon as there are more layers and parameters than a model stored as so many `tensors` has.
    """
    thread, count, limit = threading.get_ident(), 0, max(MIN_PARTS, PARTS_PER_TENSOR * tensors)

    def count_part(*registered: Any) -> None:  # noqa: ARG001 - the signature of torch's hooks
        nonlocal count
        count += threading.get_ident() == thread
        if count > limit and threading.get_ident() == thread:
            raise ValueError(f"it describes more than {limit:,} layers and parameters, and {tensors:,} are stored")

    with (
        register_module_module_registration_hook(count_part),
        register_module_parameter_registration_hook(count_part),
        torch.device("meta"),
    ):
        yield


def nbytes(model: nn.Module) -> int:
    """Return the bytes that the parameters and buffers of a model take, or would take."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def require_same_tensors(model: nn.Module, stored: Shapes) -> None:
    """Raise ValueError unless the parameters and persistent buffers of `model` are those stored, in their shapes."""
    described = model.state_dict(keep_vars=True)
    for name, shape in stored.items():
        if name not in described:
            raise ValueError(f"{name} is stored and not described")
        if shape != list(described[name].shape):
            raise ValueError(f"{name} is described as {list(described[name].shape)} and stored as {shape}")
    # A tensor of two names is stored under one of them, and torch itself counts batches from 0 where nothing is stored.
    kept = {id(tensor) for name, tensor in described.items() if name in stored}
    for name, tensor in described.items():
        if id(tensor) not in kept and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{name} is described and not stored")


def require_affordable(taken: int, stored: int) -> None:
    """Raise ValueError if `taken` bytes of memory are more than any model takes whose files have `stored` bytes."""
    if taken > max(MIN_BYTES, BYTES_PER_BYTE * stored):
        raise ValueError(f"it would take {taken / 1e9:.3g} GB of memory, for {stored / 1e6:.3g} MB of weights")
