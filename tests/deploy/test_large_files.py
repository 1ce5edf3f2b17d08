"""Networks whose weights do not fit into one ONNX file: `files.MAX_WEIGHTS` is lowered to a few bytes here."""

import pytest
import torch
from click.testing import CliRunner

import compression as lab
from compression import methods, models
from compression.cli import commands
from compression.deploy.measure import measure_model
from compression.deploy.onnx import files, qcdq
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.deploy.timing import time_files
from compression.models import storage


@pytest.fixture(autouse=True)
def tiny_limit(monkeypatch):
    monkeypatch.setattr(files, "MAX_WEIGHTS", 4000)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_weights_lie_in_a_file_beside_the_graph_and_answer_as_the_model(task, tmp_path):
    model = models.build("digits_cnn", task).eval()
    path = export(model, task.example(4), tmp_path / "model.onnx")
    assert names(tmp_path) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < files.weights_file(path).stat().st_size
    with torch.no_grad():
        torch.testing.assert_close(Session(path)(task.example(7)), model(task.example(7)), rtol=1e-3, atol=1e-4)


def test_sizes_are_those_of_both_files_and_the_stopwatch_runs_them(task, tmp_path):
    measured = measure_model(models.build("digits_cnn", task).eval(), task, tmp_path / "model.onnx", threads=1)
    both = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert measured.efficiency["size_mb"] == both / 1e6
    assert measured.efficiency["size_mb_compressed"] > 0.8 * both / 1e6  # new weights are noise
    assert time_files([measured.file], task.example(4), threads=1)[0].latency_ms > 0


def test_a_smaller_network_in_its_place_leaves_no_weights_of_the_larger(task, tmp_path):
    path = export(models.build("digits_cnn", task), task.example(4), tmp_path / "model.onnx")
    export(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), task.example(4), path)
    assert names(tmp_path) == ["model.onnx"]


def test_a_copy_of_another_name_answers_without_the_first(task, tmp_path):
    first = export(models.build("digits_cnn", task), task.example(4), tmp_path / "first.onnx")
    answers = Session(first)(task.example(7))
    assert files.copy(first, tmp_path / "copy.onnx") == [tmp_path / "copy.onnx", tmp_path / "copy.onnx.data"]
    files.remove(first)
    assert names(tmp_path) == ["copy.onnx", "copy.onnx.data"]
    assert torch.equal(Session(tmp_path / "copy.onnx")(task.example(7)), answers)


def test_integer_weights_of_a_run_are_kept_and_saved_with_their_graph(task, tmp_path):
    model = models.build("digits_cnn", task)
    data = {split: (part.prepare(part.inputs), part.targets) for split, part in task.splits().items()}
    result = lab.compress(model, "static:bits=4", lab.task(**data, classes=task.labels), threads=1)
    assert {"model.onnx", "model.onnx.data"} <= set(names(result.folder))
    saved = result.save(tmp_path / "small")
    with torch.no_grad():
        agree = Session(saved / "model.onnx")(task.example(50)).argmax(1) == result.model(task.example(50)).argmax(1)
    assert agree.float().mean() > 0.9


@pytest.mark.parametrize("kind", ["onnx", "qcdq"])
def test_the_command_export_names_both_files(kind, task, tmp_path, make_context):
    model = models.build("digits_cnn", task).eval()
    [step] = methods.parse("static:bits=4")
    storage.save(step.apply(model, make_context(task, model)), tmp_path / "stored", {})
    said = CliRunner().invoke(
        commands.cli, ["export", str(tmp_path / "stored"), "--format", kind, "--output", str(tmp_path / "a.onnx")]
    )
    assert f"{tmp_path / 'a.onnx'} and {tmp_path / 'a.onnx.data'}." in said.output
    assert Session(tmp_path / "a.onnx")(task.example(2)).shape == (2, 3)
    if kind == "qcdq":
        assert {weight.bits for weight in qcdq.read(tmp_path / "a.onnx").values()} == {4}
