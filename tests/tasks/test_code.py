"""Tasks from somebody's own code: what a function returns becomes a task, what it raises becomes one sentence."""

import sys
from pathlib import Path

import pytest
import torch

import compression
from compression import models
from compression.errors import UserError
from compression.tasks import load, short_name

EXAMPLE = '''
"""A task of my own."""
import torch

from compression.tasks import metrics
from compression.tasks.task import Split, Task


def split(n):
    targets = torch.arange(n) % 2
    images = targets.float().view(n, 1, 1, 1).expand(n, 1, 8, 8).contiguous()
    return Split(images, targets, prepare=lambda batch: batch)


def make():
    return Task(
        "mine", train=split(60), validation=split(10), test=split(20), outputs=2, labels=("dark", "light"),
        metric="accuracy", compute_metrics=metrics.accuracy, loss=metrics.cross_entropy, model="mlp", student="",
        training={"epochs": 2}, input_shape=(1, 8, 8),
    )
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(code, name)`: the file with that code, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write_file(code, name="mine.py"):
        (tmp_path / name).write_text(code)
        return tmp_path / name

    yield write_file
    for module in ("mine", "sibling", "aside"):
        sys.modules.pop(module, None)


def test_a_file_makes_a_task_with_a_short_name_and_what_it_left_out(write, tmp_path):
    file = write(EXAMPLE)
    for name in ("./mine.py:make", "mine.py:make", f"{file}:make", "mine:make"):
        task = load(name)
        assert task.name == short_name(name) == "mine:make"
        assert task.source == name
        assert task.training["epochs"] == 2
        assert task.training["optimizer"] == "adamw"
        assert len(task.digest) == 16
        assert models.build(task.model, task)(task.example(3)).shape == (3, 2)


def test_a_limit_is_kept_though_the_function_does_not_know_of_it(write):
    write(EXAMPLE)
    task = load("./mine.py:make", limit=5)
    assert [len(split) for split in task.splits().values()] == [5, 5, 5]
    assert task.is_limited


def test_a_function_may_take_the_request(write):
    write(
        EXAMPLE + "\n\ndef sized(request):\n    import dataclasses\n    n = int(request.data)\n"
        "    return dataclasses.replace(make(), train=split(n))\n"
    )
    assert len(load("./mine.py:sized", data="30").train) == 30
    with pytest.raises(UserError, match="takes no argument, so that data= has no effect"):
        load("./mine.py:make", data="30")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": [0.5]}, "mean= has no effect"),
        ({"std": [0.5], "label_column": "kind"}, "label_column= and std= have no effect"),
    ],
)
def test_what_a_function_without_a_request_is_asked_for_is_refused(write, given, said):
    write(EXAMPLE)
    with pytest.raises(UserError, match=said):
        load("./mine.py:make", **given)


NORMALIZED = (
    EXAMPLE
    + """

def scaled(request):
    import dataclasses
    task = make()
    parts = {name: dataclasses.replace(split, prepare=lambda batch: batch - (request.mean or (0.0,))[0])
             for name, split in task.splits().items()}
    return dataclasses.replace(task, **parts)
"""
)


def test_what_a_function_was_asked_for_is_other_data_to_a_baseline(write):
    write(NORMALIZED)
    asked = load("./mine.py:scaled", mean=[0.25])
    assert asked.example(1).max() == asked.test.inputs[0].max() - 0.25
    assert len({load("./mine.py:scaled", mean=mean).digest for mean in ([], [0.25], [0.5])}) == 3


def test_a_function_whose_arguments_have_values_is_called_without_the_request(write):
    write(EXAMPLE.replace("def make():", "def make(size=60, *, more=0):").replace("split(60)", "split(size + more)"))
    assert len(load("./mine.py:make").train) == 60


def test_another_loss_in_the_same_file_is_other_data_to_a_baseline(write):
    write(EXAMPLE)
    before = load("./mine.py:make").digest
    assert load("./mine.py:make").digest == before
    write(EXAMPLE.replace("metrics.cross_entropy", "lambda *a, **k: metrics.cross_entropy(*a, **k)"))
    assert load("./mine.py:make").digest != before


def test_it_may_import_files_beside_it_and_define_dataclasses(write):
    write("from dataclasses import dataclass\n@dataclass\nclass Size:\n    side: int = 8\n", "sibling.py")
    write(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom sibling import Size\n"
        + EXAMPLE
        + "\n@dataclass\nclass Own:\n    size: Size\n"
    )
    assert load("./mine.py:make").outputs == 2


FAILURES = {
    "import": (
        "import nothing_of_this_name\n",
        r"ModuleNotFoundError: No module named 'nothing_of_this_name' \(.*mine.py:1\)",
    ),
    "syntax": ("x = 1\ndef make(:\n", r"SyntaxError.*\(.*mine.py:2\)"),
    "error": ("def make():\n    table = {}\n    return table['x']\n", r"make failed: KeyError: 'x' \(.*mine.py:3\)"),
    "library": ("import torch\ndef make():\n    torch.zeros(2) @ torch.zeros(3)\n", r"RuntimeError.*\(.*mine.py:3\)"),
    "exit": ("def make():\n    raise SystemExit(3)\n", r"SystemExit: 3 \(.*mine.py:2\)"),
    "lines": ("def make():\n    raise ValueError('first\\nsecond')\n", r"ValueError: first \("),
    "nothing": ("def make():\n    pass\n", "returns a NoneType; it has to return a compression.tasks.task.Task"),
    "name": ("def build():\n    pass\n", "has no function 'make'; it has build"),
    "empty": (EXAMPLE.replace("train=split(60)", "train=split(0)"), "train split of .* holds no examples"),
    "classes": (EXAMPLE.replace("% 2", "% 3"), "train targets of .* have to be int64 classes from 0 to 1"),
    "floats": (
        EXAMPLE.replace("split(n):\n    targets = torch.arange(n) % 2", "split(n):\n    targets = torch.arange(n) / 2"),
        "int64 classes",
    ),
    "labels": (EXAMPLE.replace('("dark", "light")', '("dark",)'), "2 outputs and 1 labels"),
    "metric": (EXAMPLE.replace('metric="accuracy"', 'metric="recall"'), "gives accuracy, and not its metric 'recall'"),
    "twice": (EXAMPLE.replace('("dark", "light")', '("dark", "dark")'), "calls two classes 'dark'"),
    "shape": (EXAMPLE.replace("Split(images, targets,", "Split(images, targets[:, None],"), r"the shape \(60, 1\)"),
    "nan": (EXAMPLE.replace("Split(images,", "Split(images.log(),"), "inputs of the train split .* finite .*example 0"),
    "inputs": (EXAMPLE.replace(".contiguous()", "[:5]"), "has 60 targets and another number of inputs"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_is_told_in_a_sentence_with_file_and_line(write, case):
    code, said = FAILURES[case]
    write(code)
    with pytest.raises(UserError, match=said) as refusal:
        load("./mine.py:make")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./mine.py", r"mine.py is a file, and a task is a function of it: task=./mine.py:make"),
        ("./none.py:make", "There is no file none.py"),
        ("no.such.module:make", r"No module named 'no'"),
        ("a b:make", "neither a file .* nor a module"),
        ("./mine.py:", "is no function: write"),
        ("torch:version", "has no function 'version'"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(write, name, said):
    write(EXAMPLE)
    with pytest.raises(UserError, match=said):
        load(name)


def test_the_example_of_the_documentation_works(write):
    guide = (Path(compression.__file__).parents[1] / "docs/own-data.md").read_text()
    write(guide.partition("```python\n")[2].partition("```")[0])
    task = load("./mine.py:make")
    assert models.build(task.model, task)(task.example(2)).shape == (2, 2)


def test_a_users_own_sentence_is_left_as_it_is(write):
    write("from compression.errors import UserError\ndef make():\n    raise UserError('My disk is full.')\n")
    with pytest.raises(UserError, match=r"^My disk is full\.$"):
        load("./mine.py:make")


def test_regression_targets_have_to_be_finite(write):
    write(EXAMPLE.replace('outputs=2, labels=("dark", "light")', "outputs=1, labels=()"))
    with pytest.raises(UserError, match="finite float32"):
        load("./mine.py:make")
    assert torch.isfinite(torch.zeros(1)).all()
