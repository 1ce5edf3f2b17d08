"""The lab from Python: any module, any data, tracked or not, saved and read back."""

import ast
import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

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
