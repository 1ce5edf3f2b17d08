"""The lab from Python: any module, any data, tracked or not, saved and read back."""

import ast
import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import compression as lab
from compression import methods, tracking
from tests.conftest import tiny_bert, words_task

CLASSES = ("left", "middle", "right")


class Strange(nn.Module):
    """A residual network of somebody's own, with functions where the lab has modules."""

    def __init__(self, width=32):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 3)

    def forward(self, images):
        hidden = F.relu(self.norm(self.first(images)))
        hidden = F.relu(self.second(hidden) + hidden)
        return self.head(F.avg_pool2d(hidden, hidden.shape[-1]).flatten(1))


def tensors(count, seed):
    """Images of vertical stripes, horizontal ones, or a chessboard, in noise: a mean over all places tells them."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(8).view(-1, 1) % 2, torch.arange(8).view(1, -1) % 2
    patterns = torch.stack([columns.expand(8, 8), rows.expand(8, 8), (rows + columns) % 2]).float()
    targets = torch.randint(3, (count,), generator=generator)
    return (patterns[targets] - 0.5 + 0.3 * torch.randn(count, 8, 8, generator=generator)).unsqueeze(1), targets


@pytest.fixture(scope="module")
def task():
    return lab.task(train=tensors(256, 1), validation=tensors(96, 2), test=tensors(96, 3), classes=CLASSES)


@pytest.fixture(scope="module")
def trained(task):
    torch.manual_seed(0)
    return lab.compress(Strange(), "finetune:epochs=4,learning_rate=0.05", task, threads=1).model


@pytest.fixture(scope="module")
def result(trained, task):
    recipe = [lab.Structured(sparsity=0.3, round_to=1), "finetune:epochs=1+static"]
    return lab.compress(trained, recipe, task, threads=1)


def test_a_chain_shrinks_a_network_of_somebodys_own_and_leaves_the_original(result, trained, task):
    assert result.figures["compression_ratio"] > 2
    assert result.figures["accuracy"] >= result.figures["accuracy_before"] - 0.1 > 0.8
    assert result.figures["params"] < result.figures["params_before"]
    assert type(trained) is Strange
    assert lab.measure(trained, task, threads=1)["accuracy"] == pytest.approx(result.figures["accuracy_before"])


def test_its_sums_and_poolings_are_integers_too(result):
    kinds = {type(module).__name__ for module in result.model.modules()}
    assert {"QuantConv2d", "QuantLinear", "QuantAdd", "QuantAvgPool2d"} <= kinds


def test_what_is_saved_loads_with_the_class_or_a_module_and_answers_alike(result, task, tmp_path):
    folder = result.save(tmp_path / "small")
    example = task.example(8)
    for like in (Strange, lambda: Strange(32), Strange()):
        assert torch.equal(lab.load(folder, like=like)(example), result.model(example))
    assert "before" in (folder / "report.html").read_text()
    assert json.loads((folder / "comparison.json").read_text())["metrics"] == result.figures
    with pytest.raises(lab.CompressionError, match="a Strange of somebody's own code.*like=make_model"):
        lab.load(folder)
    with pytest.raises(lab.CompressionError, match="does not hold a whole model"):
        lab.load(folder, like=lambda: nn.Sequential(nn.Linear(3, 3)))


def test_the_export_runs_in_a_process_without_the_lab(result, task, tmp_path):
    folder = result.save(tmp_path / "small")
    torch.save(task.example(5), tmp_path / "example.pt")
    code = (
        "import sys, torch; model = torch.export.load(sys.argv[1]).module(); "
        "torch.save(model(torch.load(sys.argv[2])), sys.argv[3]); assert 'compression' not in sys.modules"
    )
    paths = [folder / "model.pt2", tmp_path / "example.pt", tmp_path / "answers.pt"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "answers.pt"), result.model(task.example(5)))


def test_a_folder_with_other_content_is_not_overwritten(result, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(lab.CompressionError, match="is not empty"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_report_is_shown_by_notebooks_and_written_to_a_file(result, tmp_path):
    page = result.report(tmp_path / "report.html")
    assert page == (tmp_path / "report.html").read_text()
    assert page._repr_html_().startswith("<iframe")
    assert "accuracy" in repr(result)
    assert "accuracy" in result._repr_html_()


def test_nothing_is_tracked_unless_an_experiment_is_named(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab.compress(Strange(), "magnitude", task, threads=1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COMPRESSION_HOME", str(tmp_path / "home"))
    result = lab.compress(Strange(), "magnitude", task, experiment="mine", threads=1)
    record = tracking.get_run(result.content["run"])
    assert record.metrics["sparsity"] == pytest.approx(result.figures["sparsity"])
    assert record.params["model"] == "Strange"
    assert result.report()


class Pairs(Dataset):
    """Examples one by one."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], int(self.targets[index])


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: TensorDataset(x, y),
        lambda x, y: Pairs(x, y),
        lambda x, y: DataLoader(Pairs(x, y), batch_size=7),
        lambda x, y: [(x[:5], y[:5]), (x[5:], y[5:])],
        lambda x, y: (batch for batch in [(x[:5], y[:5]), (x[5:], y[5:])]),
        lambda x, y: [{"input": image, "label": target} for image, target in zip(x, y, strict=True)],
    ],
    ids=["pair", "tensors", "dataset", "loader", "batches", "generator", "named"],
)
def test_every_form_of_data_gives_the_same_examples(form):
    inputs, targets = tensors(24, 1)
    made = lab.task(train=form(inputs, targets), test=form(inputs, targets), classes=3)
    stored = made.test.inputs["input"] if isinstance(made.test.inputs, dict) else made.test.inputs
    assert torch.equal(stored, inputs)
    assert torch.equal(made.test.targets, targets)
    assert (len(made.train), len(made.validation)) == (22, 2)
    assert made.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": ["a", "b"]}, "A target is 2; with 2 classes, targets are 0 to 1"),
        ({"classes": 1, "test": (torch.zeros(2, 1), torch.zeros(2))}, "A target is 2"),
        ({"test": []}, "The split test has no examples"),
        ({"test": [1, 2]}, "pairs of inputs and targets.*gives a int"),
        ({"test": (torch.zeros(2, 1), torch.tensor([0, -1]))}, "targets of test have to be classes"),
        ({"test": [(torch.zeros(2, 1), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2))]}, "do not fit together"),
    ],
)
def test_data_that_is_no_classification_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(lab.CompressionError, match=sentence):
        lab.task(**({"train": tensors(24, 1), "test": tensors(24, 1)} | changes))


def test_a_task_from_python_and_one_from_a_file_have_the_same_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine_of_api.py").write_text(
        "import dataclasses, torch, compression as lab\n"
        "def make():\n    x = torch.zeros(12, 4), torch.arange(12) % 2\n"
        "    return dataclasses.replace(lab.task(train=x, test=x), model='mlp', training={})\n"
    )
    from_file, here = lab.load_task("./mine_of_api.py:make"), lab.task(train=tensors(24, 1), test=tensors(24, 1))
    assert from_file.training == here.training
    assert {"epochs", "learning_rate", "optimizer"} <= here.training.keys()
    assert lab.task(train=tensors(24, 1), test=tensors(24, 1), training={"epochs": 2}).training["epochs"] == 2


def numbers(count, seed):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]]) + 3).double()


@pytest.mark.parametrize("column", [True, False])
def test_targets_that_are_floats_are_a_regression(column):
    splits = {name: numbers(64, i) for i, name in enumerate(("train", "validation", "test"))}
    task = lab.task(**{name: (x, y if column else y.squeeze(1)) for name, (x, y) in splits.items()})
    assert (task.outputs, task.labels, task.metric) == (1, (), "pearson")
    assert task.test.targets.shape == (64,)
    assert task.test.targets.dtype == torch.float32
    result = lab.compress(
        nn.Sequential(nn.Linear(4, 1)), "finetune:epochs=8,learning_rate=0.1,batch_size=8", task, threads=1
    )
    assert result.figures["pearson"] > 0.9


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (lambda x, y: (x.numpy(), y.numpy()), 3),
        (lambda x, y: (x.double(), y.unsqueeze(1)), 3),
        (lambda x, y: (x, y.double()), 3),
        (lambda x, y: {"image": x, "labels": y}, 3),
        (lambda x, y: DataLoader(Pairs(x, y), batch_size=None), 3),
        (lambda x, y: [(image, target[None]) for image, target in zip(x.repeat(1, 2, 1, 1), y, strict=True)], 3),
    ],
    ids=["arrays", "column", "whole floats", "one batch of named tensors", "loader of examples", "targets of one"],
)
def test_other_forms_of_data_are_read_right(form, expected):
    inputs, targets = tensors(24, 1)
    made = lab.task(train=form(inputs, targets), test=form(inputs, targets), classes=expected)
    assert torch.equal(made.test.targets, targets)
    stored = made.test.inputs["image"] if isinstance(made.test.inputs, dict) else made.test.inputs
    assert torch.equal(stored[:, :1], inputs)
    assert stored.dtype == torch.float32


class Unending(Dataset):
    """A Dataset that is iterated over without end, as those without an IndexError are."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.zeros(4), torch.tensor([float(index)])


def test_a_dataset_ends_where_its_length_says():
    task = lab.task(train=Unending(), test=Unending())
    assert task.test.inputs.shape == (6, 4)
    assert task.test.targets.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def texts(pad, *lengths, masked=True):
    """Batches of one text each, with one token of padding by their own tokenizer where there is a mask."""
    for length in lengths:
        ids = torch.tensor([[*range(1, length + 1), *([pad] if masked else [])]])
        mask = {"attention_mask": torch.tensor([[1] * length + [0]])} if masked else {}
        yield {"input_ids": ids, "labels": torch.tensor([length % 2])} | mask


def test_texts_are_padded_with_the_token_that_their_batches_are_padded_with():
    task = lab.task(train=list(texts(9, 2, 3, 4)), test=list(texts(9, 2, 3, 4)))
    assert task.test.inputs["input_ids"].tolist() == [[1, 2, 9, 9, 9], [1, 2, 3, 9, 9], [1, 2, 3, 4, 9]]
    assert task.test.inputs["attention_mask"].sum(1).tolist() == [2, 3, 4]


X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
ODD = {
    "names as one text": ({"classes": "ab"}, "classes='ab' is no list"),
    "names without order": ({"classes": {"a", "b"}}, "is no list"),
    "a name twice": ({"classes": ["a", "a"]}, "lab.task calls two classes 'a'"),
    "no class": ({"classes": 0}, "A target is 1; with 0 classes"),
    "fractions as classes": ({"classes": 2, "test": (X, torch.tensor([0.0, 0.5, 1.0, 1.0]))}, "have to be classes"),
    "missing targets": ({"classes": 2, "test": (X, torch.full((4,), torch.nan))}, "have to be classes"),
    "missing numbers": ({"train": (X, Y / 2), "test": (X, torch.full((4,), torch.nan))}, "have to be finite"),
    "one-hot targets": ({"train": (X, torch.eye(4)), "test": (X, torch.eye(4))}, r"targets of lab.task have the shape"),
    "missing inputs": ({"test": (X / 0, Y)}, "inputs of the test split of lab.task are not all finite"),
    "other counts": ({"test": (X[:3], Y)}, "has 4 targets and another number of inputs"),
    "a path": ({"test": "data.csv"}, "it gives a str"),
    "a number": ({"test": 5}, "is a int; give a DataLoader, a Dataset or a pair of arrays"),
    "texts": ({"test": [{"text": "good", "label": 1}]}, "holds a str, which is no tensor"),
    "objects": ({"test": [(object(), 1)]}, "holds a object, which is no tensor"),
    "other names": ({"test": [{"x": X, "labels": Y}, {"z": X, "labels": Y}]}, "do not fit together"),
    "a tensor and names": ({"test": [(X, Y), {"x": X, "labels": Y}]}, "do not fit together"),
    "no mask": ({"test": list(texts(0, 2, 3, masked=False))}, "Texts of different lengths .* need an attention_mask"),
    "one example": ({"train": (X[:1], Y[:1])}, "holds 1 example"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_data_are_refused_in_a_sentence(case):
    changes, said = ODD[case]
    with pytest.raises(lab.CompressionError, match=said) as refusal:
        lab.task(**({"train": (X, Y), "test": (X, Y)} | changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "recipe", "settings", "sentence"),
    [
        (nn.Linear(3, 3), "static", {}, "Linear does not take the inputs of own"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), "static", {}, "gives 5 outputs and own has 3"),
        (Strange(), "statik", {}, "There is no method 'statik'"),
        (Strange(), "static+finetune", {}, "put finetune first"),
        (Strange(), "drop_layers", {}, "drop_layers works on transformers alone"),
        (Strange(), "static", {"seeds": 3}, "There is no setting 'seeds'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(model, recipe, settings, sentence, task):
    with pytest.raises(lab.CompressionError, match=sentence):
        lab.compress(model, recipe, task, threads=1, **settings)


class OfOtherMeaning(Strange):
    """A network that keeps something else under the name of the lab's."""

    spec = 3


NOT_THESE = {
    "no model": (lambda task: lab.measure(None, task), "None is no model: give an nn.Module"),
    "a class": (lambda task: lab.measure(Strange, task), "is no model: give an nn.Module, made"),
    "no name": (lambda task: lab.measure("", task), "There is no model ''"),
    "its spec": (lambda task: lab.measure(OfOtherMeaning(), task), "has an attribute `spec` of its own"),
    "no recipe": (lambda task: lab.compress(Strange(), None, task), "A recipe is text, a step such as .* not None"),
    "no steps": (lambda task: lab.compress(Strange(), [], task), "A recipe is text, a step"),
    "a pair": (lambda task: lab.measure(Strange(), tensors(24, 1)), "A tuple is no task: make one with task"),
    "a step": (lambda task: lab.tune(Strange(), lab.Magnitude(), task), "tune takes its recipe as text"),
    "an option": (lambda task: lab.tune(Strange(), "magnitude", task, options={"x": 1}), "There is no option 'x'"),
    "a bound": (
        lambda task: lab.tune(Strange(), "magnitude", task, options={"constraints": {"size_mb": "nan..2"}}),
        "is written name=low..high",
    ),
    "a metric": (
        lambda task: lab.tune(Strange(), "magnitude", task, options={"constraints": {"size": "..2"}}, threads=1),
        "There is no metric 'size'",
    ),
    "no name of a task": (lambda task: lab.load_task(None), "task=None is not a text"),
    "half an example": (lambda task: lab.load_task("digits", limit=1.5), "limit=1.5 is not a whole number"),
    "a text as mean": (lambda task: lab.load_task("digits", mean="0.5"), "mean='0.5' is not a list of numbers"),
    "no number as mean": (lambda task: lab.load_task("digits", mean=[float("nan")]), "mean=nan is out of range"),
    "no function": (lambda task: lab.task(train=(X, Y), test=(X, Y), augment=3), "augment=3 is no function"),
    "complex": (lambda task: lab.task(train=(X, Y * 1j), test=(X, Y)), "its numbers are complex"),
}


@pytest.mark.parametrize("case", NOT_THESE)
def test_what_is_something_else_is_said_in_a_sentence(case, task):
    call, said = NOT_THESE[case]
    with pytest.raises(lab.CompressionError, match=said):
        call(task)


def test_tables_sparse_and_differentiable_tensors_are_read_as_their_numbers():
    numbers = np.arange(24.0).reshape(12, 2)
    targets = np.arange(12) % 2
    table = pd.DataFrame(numbers, columns=["a", "b"]), pd.Series(targets)
    forms = [table, (torch.tensor(numbers).to_sparse(), targets), (torch.tensor(numbers).requires_grad_(), targets)]
    for form in forms:
        made = lab.task(train=form, test=form).test
        assert torch.equal(made.inputs, torch.tensor(numbers).float())
        assert torch.equal(made.targets, torch.tensor(targets))


def test_a_transformer_that_transformers_built_is_stored_by_its_config(tmp_path):
    task = words_task()
    model = tiny_bert()
    del model.spec
    result = lab.compress(model, "dynamic", task, threads=1)
    again = lab.load(result.save(tmp_path / "bert"))
    assert torch.equal(again(**task.example(4)).logits, result.model(**task.example(4)).logits)


def test_tuning_gives_the_front_and_its_best_models_on_the_test_split(trained, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESSION_HOME", str(tmp_path / "home"))
    tuned = lab.tune(
        trained, "magnitude+half", task, trials=3, options={"objectives": ("accuracy", "size_mb")}, threads=1
    )
    assert {"trial", "accuracy", "size_mb", "magnitude.sparsity"} <= tuned.front[0].keys()
    assert {"best_accuracy", "smallest", "knee"} == tuned.results.keys()
    smallest = tuned.results["smallest"]
    assert lab.measure(smallest.model, task, threads=1)["accuracy"] == pytest.approx(smallest.figures["accuracy"])
    assert torch.equal(lab.load(smallest.save("small"), like=Strange)(task.example(4)), smallest.model(task.example(4)))
    assert not Path("optuna.db").exists()
    assert not Path("mlflow.db").exists()
    with pytest.raises(lab.CompressionError, match="None of 2 trials meets the constraints"):
        lab.tune(trained, "magnitude", task, trials=2, options={"constraints": {"size_mb": "..0.0001"}}, threads=1)


def test_tuning_is_tracked_by_the_same_rule_as_compression(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COMPRESSION_HOME", str(tmp_path / "home"))
    options = {"objectives": ("accuracy", "size_mb"), "space": {"magnitude.sparsity": "0.2/0.4"}}
    tuned = lab.tune(Strange(), "magnitude+half", task, trials=2, options=options, threads=1)
    smallest = tuned.results["smallest"]
    record = tracking.get_run(smallest.content["run"])
    assert record.metrics["size_mb"] == pytest.approx(smallest.figures["size_mb"])
    parent = tracking.get_run(record.tags["mlflow.parentRunId"])
    assert parent.tags["stage"] == "tune"
    assert parent.params["recipe"] == "magnitude+half"
    assert parent.metrics["trials"] == 2
    assert torch.equal(lab.load(smallest.save("small"), like=Strange)(task.example(4)), smallest.model(task.example(4)))


def test_a_warning_of_a_run_is_a_python_warning_and_in_the_result(task):
    with pytest.warns(tracking.CompressionWarning, match="Over-pruned"):
        result = lab.compress(Strange(), "magnitude:sparsity=0.999,scope=local", task, threads=1)
    assert any("Over-pruned" in sentence for sentence in result.warnings)


def test_the_tasks_defaults_of_a_step_are_not_called_fields_without_effect(trained, task):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no effect")
        lab.compress(copy.deepcopy(trained), "structured:sparsity=0.2,round_to=1+finetune:epochs=1", task, threads=1)


def test_methods_are_listed_and_their_classes_are_attributes():
    assert lab.methods().keys() == methods.METHODS.keys()
    assert lab.Structured is methods.method("structured")
    assert {"Structured", "Static", "compress", "methods"} <= set(dir(lab))
    with pytest.raises(AttributeError, match="no attribute 'Structure'"):
        lab.Structure  # noqa: B018


def test_importing_the_lab_loads_no_torch():
    code = "import sys, compression; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_names_of_the_package_are_those_of_its_module():
    tree = ast.parse(Path(lab.__file__).read_text())
    imported = [a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names]
    assert set(lab.__all__) <= set(imported)


@pytest.mark.parametrize("call", [lambda: lab.load(5), lambda: lab.load(None)])
def test_what_is_no_path_is_refused_in_a_sentence(call):
    with pytest.raises(lab.CompressionError, match="folder is the path of a file or folder"):
        call()


def test_data_that_is_no_path_is_not_found():
    with pytest.raises(lab.CompressionError, match="no file or folder data=5"):
        lab.load_task("text", data=5)
