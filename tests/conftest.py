"""What many tests share: a small separable task, a context to apply methods in, a record that remembers."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch
from torch import nn

from compression import models
from compression.context import Context
from compression.machine import accelerator
from compression.tasks.task import Split, Task


class Kept:
    """A Record in memory."""

    def __init__(self):
        self.history, self.tags, self.warnings, self.figures, self.tables = {}, {}, [], {}, {}

    def metrics(self, values, step=None):
        for name, value in values.items():
            self.history.setdefault(name, []).append((step, value))

    def tag(self, name, value):
        self.tags[name] = value

    def warn(self, sentence):
        self.warnings.append(sentence)

    def figure(self, name, figure):
        self.figures[name] = figure

    def table(self, name, rows):
        self.tables[name] = rows


def stripes(count: int, seed: int) -> Split:
    """8x8 images of one bright column group among three, in noise: easy, yet not linear in one pixel."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    for c in range(3):
        images[targets == c, :, :, 2 * c + 1] += 100
    return Split(images.to(torch.uint8), targets, lambda stored: stored.float() / 255 - 0.5)


def stripes_task(**changes) -> Task:
    def metrics(logits, targets):
        return {"accuracy": (logits.argmax(1) == targets).float().mean().item()}

    given = {
        "name": "stripes",
        "train": stripes(256, 1),
        "validation": stripes(96, 2),
        "test": stripes(96, 3),
        "outputs": 3,
        "labels": ("left", "middle", "right"),
        "metric": "accuracy",
        "metrics": metrics,
        "loss": nn.functional.cross_entropy,
        "model": "digits_cnn",
        "student": "digits_cnn_small",
        "recipe": {
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 0.05,
            "optimizer": "sgd",
            "schedule": "onecycle",
            "warmup": 0.3,
            "weight_decay": 1e-4,
            "label_smoothing": 0.0,
        },
        "input_shape": (1, 8, 8),
        "source": "made by the tests",
        "digest": "stripes",
    }
    return Task(**(given | changes))


@pytest.fixture
def task():
    return stripes_task()


@pytest.fixture
def make_context(tmp_path):
    """`make_context(task, original, seed=0, …)`: a Context whose record is a Kept."""

    def make(task, original, seed=0, **changes):
        given = {
            "task": task,
            "original": original.eval(),
            "accelerator": accelerator(True, "no"),
            "record": Kept(),
            "seed": seed,
            "folder": tmp_path,
            "load": lambda name: models.build(name, task),
            "build": lambda name: models.build(name, task),
        }
        return Context(**(given | changes))

    return make
