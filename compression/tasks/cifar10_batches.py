"""CIFAR-10 as its authors publish it and torchvision stores it: pickled batches.

A pickle can run any code, so this reader allows nothing but NumPy arrays and plain values.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compression.errors import UserError, first_line

if TYPE_CHECKING:
    from pathlib import Path

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module's name differs between NumPy 1 and 2


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses every global that a pickle may import, except those that make up a NumPy array."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the global `name` of `module`. Raises UnpicklingError if it is not allowed."""
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return _RECONSTRUCT
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes into an old pickle
            return lambda text, _: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_batch(file: Path, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return the images of a file, uint8 `(n, 3, 32, 32)`, and their labels, int64 `(n,)`, each below `classes`.

    Raises UserError if the file is damaged or holds anything else.
    """
    try:
        with file.open("rb") as opened:
            content = _ArrayUnpickler(opened, encoding="bytes").load()
        images = torch.from_numpy(content[b"data"].astype(np.uint8, casting="safe")).reshape(-1, 3, 32, 32)
        labels = torch.tensor(content[b"labels"], dtype=torch.long)
        if labels.shape != (len(images),) or torch.any((labels < 0) | (labels >= classes)):
            raise ValueError(f"its labels are not one of 0 to {classes - 1} for each of {len(images)} images")
        return images, labels
    except Exception as error:
        raise UserError(f"{file} is not an intact batch of CIFAR-10: {first_line(error)}.") from error
