"""What many tests share: a small separable task, a context to apply methods in, a record that remembers."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

import base64
import contextlib
import logging
import signal
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from compression import models
from compression.runs.machine import accelerator
from compression.tasks.task import Split, Task
from compression.training.context import Context

# The compiler tells its every thought to a logger that pytest would listen to, and keep for each test.
logging.getLogger("torch.__trace").addHandler = lambda handler: None
save_picture = Figure.savefig
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def save_pixel(_, file, **options):
    """In place of `Figure.savefig`: drawing a picture takes 0.3 s, and a run leaves up to ten."""
    if hasattr(file, "write"):
        file.write(PIXEL)
    else:
        Path(file).write_bytes(PIXEL)


Figure.savefig = save_pixel  # not in the processes that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in the background: children inherit it

LONGEST = (
    "tuning/test_tune.py",
    "runs/test_chains.py",
    "methods/test_contract.py",
    "study/test_web.py",
    "backend/test_backend.py",
    "runs/test_runs.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: not item.nodeid.partition("::")[0].endswith(LONGEST))


@pytest.fixture
def real_pictures(monkeypatch):
    """For tests that look at pictures: they are drawn."""
    monkeypatch.setattr(Figure, "savefig", save_picture)


class Kept:
    """A Record in memory."""

    def __init__(self):
        self.history, self.tags, self.warnings, self.figures, self.tables = {}, {}, [], {}, {}
        self.artifacts = []

    def metrics(self, values, step=None):
        for name, value in values.items():
            self.history.setdefault(name, []).append((step, value))

    def tag(self, name, value):
        self.tags[name] = value

    def warn(self, sentence, echo=True):
        self.warnings.append(sentence)

    def figure(self, name, figure):
        self.figures[name] = figure

    def table(self, name, rows):
        self.tables[name] = rows

    def artifact(self, path):
        self.artifacts.append(path)


def kept_child(name):
    """What a context opens a child run with, where nothing is tracked."""
    return contextlib.nullcontext(Kept())


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
        "compute_metrics": metrics,
        "loss": nn.functional.cross_entropy,
        "model": "digits_cnn",
        "student": "digits_cnn_small",
        "training": {
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
            "child": kept_child,
        }
        return Context(**(given | changes))

    return make


def words(count: int, seed: int, classes: int = 3, length: int = 8, vocabulary: int = 24) -> Split:
    """Sequences of random words, one of which tells the class; the last two places are padding in half of them."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (count,), generator=generator)
    ids = torch.randint(2 + classes, vocabulary, (count, length), generator=generator)
    ids[:, 0] = 1
    places = torch.randint(1, length - 2, (count,), generator=generator)
    ids[torch.arange(count), places] = 2 + targets
    mask = torch.ones_like(ids)
    mask[: count // 2, -2:] = 0
    return Split({"input_ids": ids * mask, "attention_mask": mask}, targets, lambda stored: stored)


def words_task(**changes) -> Task:
    """A text task that a tiny BERT learns in a few epochs."""
    recipe = {"epochs": 4, "batch_size": 32, "learning_rate": 3e-3, "optimizer": "adamw", "schedule": "linear"}
    recipe |= {"warmup": 0.1, "weight_decay": 0.01, "label_smoothing": 0.0}
    given = {
        "name": "words",
        "train": words(256, 1),
        "validation": words(96, 2),
        "test": words(96, 3),
        "model": "tiny",
        "student": "",
        "training": recipe,
        "input_shape": (),
        "digest": "words",
    }
    return stripes_task(**(given | changes))


def tiny_bert(outputs: int = 3, **changes) -> nn.Module:
    """A BERT classifier of three layers with four heads of eight, untrained; a config may say otherwise."""
    from compression.models import huggingface

    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = {"model_type": "bert", "vocab_size": 24, "max_position_embeddings": 16, "num_labels": outputs}
    return huggingface.build_from_config(config | size | changes).eval()


def tiny_lstm(outputs: int = 3) -> nn.Module:
    """The lab's LSTM for the same words, in a tenth of its width, untrained."""
    return models.rebuild({"builder": "lstm", "arguments": {"outputs": outputs, "vocabulary": 24, "width": 0.1}}).eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tracking store of this module's own, current folder and all."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("COMPRESSION_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield folder
        mlflow.set_tracking_uri(None)


@pytest.fixture
def compression(capsys, monkeypatch, tmp_path):
    """`compression(*words)`: exit code, output, errors; the store it would write to is empty."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    before = signal.getsignal(signal.SIGTERM)

    from compression.cli import main

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        signal.signal(signal.SIGTERM, before)
        return stop.value.code, *capsys.readouterr()

    return run
