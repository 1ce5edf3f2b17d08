"""`compression export`: a stored model as one file for other tools."""

import copy

import pytest
import torch
from torch import nn

from compression import methods, models
from compression.cli import commands
from compression.deploy.onnx import qcdq
from compression.deploy.parity import check_parity
from compression.deploy.session import Session
from compression.errors import UserError
from compression.models import storage
from compression.runs import export
from compression.tasks.task import predict
from tests.conftest import tiny_bert, words_task


@pytest.fixture
def stored(tmp_path, task, make_context):
    """A folder with a network of 4-bit weights, and the network."""
    model = models.build("digits_cnn", task).eval()
    [step] = methods.parse("static:bits=4")
    made = step.apply(copy.deepcopy(model), make_context(task, model))
    return storage.save(made, tmp_path / "stored", {}), made


def test_the_onnx_file_answers_as_the_model(stored, task, tmp_path):
    folder, model = stored
    path = export.write(str(folder), "onnx", tmp_path / "a.onnx")
    assert check_parity(model, path, task.test, task, threads=1).agreement >= 0.998


def test_the_exchange_file_says_the_bits(stored, task, tmp_path):
    folder, model = stored
    found = qcdq.read(export.write(str(folder), "qcdq", tmp_path / "a.onnx"))
    assert {weight.bits for weight in found.values()} == {4}
    assert check_parity(model, tmp_path / "a.onnx", task.test, task, threads=1).agreement >= 0.998


def test_the_weights_load_with_nothing_but_weights(stored, tmp_path):
    folder, model = stored
    found = torch.load(export.write(str(folder), "pth", tmp_path / "a.pth"), weights_only=True)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_a_text_model_is_written_too(tmp_path):
    model = tiny_bert().eval()
    folder = storage.save(model, tmp_path / "stored", {})
    path = export.write(str(folder), "onnx", tmp_path / "a.onnx")
    task = words_task()
    torch.testing.assert_close(
        Session(path)(next(with_types(task.test).batches(500))[0]), predict(model, task.test)[0], rtol=1e-4, atol=1e-5
    )


def with_types(split):
    """The split with the token types that a BERT's file names as an input."""
    inputs = split.inputs | {"token_type_ids": torch.zeros_like(split.inputs["input_ids"])}
    return type(split)(inputs, split.targets, split.prepare)


def test_a_format_that_cannot_hold_the_model_is_refused_and_no_file_left(tmp_path, task):
    model = models.build("digits_cnn", task)
    folder = storage.save(model, tmp_path / "stored", {})
    with pytest.raises(UserError, match="quantized"):
        export.write(str(folder), "qcdq", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_no_model_of_the_lab_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no model of the lab"):
        export.write(str(tmp_path), "onnx", tmp_path / "a.onnx")


def test_a_folder_that_is_not_there_is_refused(stored, tmp_path):
    folder, _ = stored
    for kind in export.FORMATS:
        with pytest.raises(UserError, match="cannot be written: there is no folder"):
            export.write(str(folder), kind, tmp_path / "nowhere" / "file")


def test_the_command_says_where_other_readers_may_answer_otherwise(stored, tmp_path, capsys):
    folder, _ = stored
    commands.export(str(folder), "qcdq", str(tmp_path / "a.onnx"))
    assert "the format onnx answers as the model does" in capsys.readouterr().err
    commands.export(str(folder), "onnx", str(tmp_path / "b.onnx"))
    assert "answers" not in capsys.readouterr().err


def test_a_model_says_what_it_takes(task):
    model = models.build("digits_cnn", task)
    assert models.zero_inputs(model, 3).shape == (3, 1, 8, 8)
    assert isinstance(model, nn.Module)
