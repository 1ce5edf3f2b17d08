"""CIFAR-10 as its authors publish it and torchvision keeps it: Python pickles.

A pickle can run any program, so this reader admits nothing but NumPy arrays beside plain values.
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


class _ArraysOnly(pickle.Unpickler):
    """Refuses every name a pickle may ask for, but those that make up a NumPy array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return _RECONSTRUCT
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes into an old pickle
            return lambda text, _: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_batch(file: Path, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Images uint8 `(n, 3, 32, 32)` and labels int64 `(n,)`, each below `classes`, of one file.

    Raises UserError for a file that is damaged or holds anything else.
    """
    try:
        with file.open("rb") as opened:
            content = _ArraysOnly(opened, encoding="bytes").load()
        images = torch.from_numpy(content[b"data"].astype(np.uint8, casting="safe")).reshape(-1, 3, 32, 32)
        labels = torch.tensor(content[b"labels"], dtype=torch.long)
        if labels.shape != (len(images),) or torch.any((labels < 0) | (labels >= classes)):
            raise ValueError(f"its labels are not one of 0 to {classes - 1} for each of {len(images)} images")
        return images, labels
    except Exception as error:
        raise UserError(f"{file} is not an intact batch of CIFAR-10: {first_line(error)}.") from error
