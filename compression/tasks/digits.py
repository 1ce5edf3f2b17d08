"""The handwritten digits of scikit-learn, 8x8 pixels: no download, and training takes seconds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from compression.errors import UserError
from compression.tasks.images import Normalization
from compression.tasks.metrics import accuracy, cross_entropy
from compression.tasks.splits import SPLIT_SEED, splits_digest
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from compression.tasks import TaskRequest

SHAPE = (1, 8, 8)
prepare = Normalization(mean=(0.3053,), std=(0.3761,))  # of all images, for pixels in [0, 1]


def digits(request: TaskRequest) -> Task:
    """Load 1,797 images: 60% train, 20% validation, 20% test, stratified by digit.

    Not augmented: the digits are centred, and random shifts by one pixel cost half a percent of accuracy. Raises
    UserError if `request` names a data folder.
    """
    if request.data:
        raise UserError("The digits come with scikit-learn; leave data= empty.")
    normalization = prepare.requested(request)
    images, targets = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, *SHAPE)
    whole = Split(torch.from_numpy(pixels), torch.from_numpy(targets).long(), normalization)
    parts = [torch.from_numpy(part)[: request.limit] for part in _split_indices(targets)]
    train, validation, test = map(whole.select, parts)
    return Task(
        request.name,
        train=train,
        validation=validation,
        test=test,
        outputs=10,
        labels=tuple("0123456789"),
        metric="accuracy",
        compute_metrics=accuracy,
        loss=cross_entropy,
        model="digits_cnn",
        student="digits_cnn_small",
        training={
            "epochs": 30,
            "batch_size": 64,
            "learning_rate": 0.1,
            "optimizer": "sgd",
            "schedule": "onecycle",
            "warmup": 0.25,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,
        },
        input_shape=SHAPE,
        normalization=normalization,
        source="scikit-learn's digits",
        digest=splits_digest([train, validation, test], normalization, prepare),
        is_limited=request.limit is not None,
    )


def _split_indices(targets: np.ndarray) -> list[np.ndarray]:
    """Return the indices of train, validation and test, in random order."""
    split = partial(train_test_split, random_state=SPLIT_SEED)
    train, rest = split(np.arange(len(targets)), test_size=0.4, stratify=targets)
    return [train, *split(rest, test_size=0.5, stratify=targets[rest])]
