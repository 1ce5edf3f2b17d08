import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.deploy import parity, stopwatch
from compression.deploy.measure import measure_model
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity, max_disagreements
from compression.deploy.session import Session
from compression.deploy.timing import time_files
from compression.errors import UserError
from compression.methods.quantize.half import to_half
from compression.nn.quantized import QuantLinear
from compression.tasks.task import predict
from tests.deploy.graphs import optimized_graph
from tests.deploy.qparams import input_qparams, weight_qparams


def test_a_file_with_other_outputs_is_refused(task, tmp_path):
    model, other = (
        models.build("digits_cnn_small", task).eval(),
        models.build("digits_cnn_small", task).eval(),
    )
    file = export(model, task.example(4), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="gives other predictions than the model on .*%"):
        check_parity(other, file, task.test, task, threads=1)


@pytest.mark.parametrize("factor", [1e4, 1e25, float("nan")])
def test_a_model_that_diverged_is_not_blamed_on_its_file(task, tmp_path, factor):
    model = models.build("digits_cnn", task).eval()
    for parameter in model.parameters():
        parameter.data *= factor
    with pytest.raises(
        UserError, match="training has diverged.* is .*; train it with a lower learning_rate, or clip=1"
    ):
        measure_model(model, task, tmp_path / "model.onnx", 1)


def test_a_model_that_cannot_be_exported_is_refused_and_leaves_no_file(task, tmp_path):
    class Odd(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, : 3 if images.sum() > 0 else 2]

    with pytest.raises(UserError, match="could not be written as ONNX"):
        export(Odd(), task.example(4), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_exporting_does_not_change_the_model(task, tmp_path):
    model = models.build("digits_cnn_small", task).train()
    export(model, task.example(4), tmp_path / "model.onnx")
    assert model.training


def test_a_session_gives_the_outputs_of_the_model(task, tmp_path):
    model = models.build("digits_cnn", task).eval()
    file = export(model, task.example(4), tmp_path / "model.onnx")
    inputs = task.example(7)
    with torch.no_grad():
        torch.testing.assert_close(Session(file)(inputs), model(inputs), rtol=1e-3, atol=1e-4)


def test_files_are_timed_alternately_and_the_backend_is_named(task, tmp_path):
    file = export(models.build("digits_cnn", task), task.example(4), tmp_path / "model.onnx")
    one, other = time_files([file, file], task.example(8), threads=1)
    assert one.latency_ms > 0
    assert one.throughput > 0
    assert one.backend == other.backend
    assert "1 threads" in one.backend


def test_threads_do_not_spin_while_the_next_file_is_timed(task, tmp_path):
    file = export(models.build("mlp", task), task.example(4), tmp_path / "model.onnx")
    options = stopwatch.create_session(str(file), threads=2, cuda=False).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_equal_predictions_are_told_apart_from_those_within_the_noise(task, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = models.build("mlp", task).eval()
    predicted = predict(model, task.test)[0]
    model.fc.bias.data -= predicted.mean(0)  # no class is preferred, and all logits are close together
    noisy = copy.deepcopy(model)
    monkeypatch.setattr(parity, "MAX_RELATIVE_ERROR", 0.5)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    file = export(noisy, task.example(4), tmp_path / "model.onnx")
    found = check_parity(model, file, task.test, task, threads=1)
    expected, actual = (predict(each, task.test)[0].argmax(1) for each in (model, noisy))
    assert found.agreement == (expected == actual).double().mean().item() < 1.0
    assert found.agreement < found.agreement_within_noise


def test_integers_may_change_logits_by_more_than_floats():
    integers = QuantLinear.from_float(nn.Linear(64, 64), weight_qparams(torch.randn(64, 64), 8), input_qparams(-4, 4))
    weights_alone = QuantLinear.from_float(nn.Linear(64, 64), weight_qparams(torch.randn(64, 64), 8))
    found = [parity.max_relative_error(nn.Sequential(layer)) for layer in (nn.Linear(2, 2), weights_alone, integers)]
    assert found == [0.1, 0.1, 0.5]


def test_few_examples_may_differ_by_chance_and_many_may_not():
    assert max_disagreements(96) < 2  # 0.192 + 2 sqrt(0.192)
    assert max_disagreements(872) == pytest.approx(4.385, abs=1e-3)
    assert max_disagreements(10_000) == pytest.approx(28.94, abs=1e-2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(64, 64),
        to_half(nn.Linear(64, 64), "float16"),
        QuantLinear.from_float(nn.Linear(64, 64), weight_qparams(torch.randn(64, 64), 8), input_qparams(-4, 4)),
        QuantLinear.from_float(nn.Linear(64, 64), weight_qparams(torch.randn(64, 64), 4, "group", 16)),
    ],
    ids=["floats", "halves", "integers", "blocks"],
)
def test_onnx_runtime_does_not_fuse_the_slow_bias_gelu(layer, tmp_path):
    model, inputs = nn.Sequential(layer, nn.GELU()), torch.randn(2, 5, 64)
    path = export(model, inputs, tmp_path / "model.onnx")
    with torch.no_grad():
        torch.testing.assert_close(Session(path)(inputs), model(inputs), rtol=1e-3, atol=1e-3)
    ran = [node.op_type for node in optimized_graph(path).node]
    assert "Gelu" in ran
    assert "BiasGelu" not in ran
