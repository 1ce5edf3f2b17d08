import copy

import onnx
import pytest
import torch
from torch import nn

from compression import models
from compression.deploy.measure import (
    EFFICIENCY_METRICS,
    add_timings,
    compare,
    layer_table,
    measure_model,
    structure_metrics,
)
from compression.nn import layers
from compression.nn.layers import count_macs
from compression.tasks.task import evaluate


class Two(nn.Module):
    """A convolution and a linear layer whose costs are easily counted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 8 * 8, 3)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).flatten(1))


def test_macs_and_parameters_equal_the_count_by_hand(task):
    counts = count_macs(Two(), task.example())
    assert counts["conv"] == 8 * 8 * 4 * 9
    assert counts["fc"] == 256 * 3
    assert counts[""] == 0
    found = structure_metrics(Two(), task.example())
    assert found["params"] == 4 * 9 + 2 * 4 + 256 * 3 + 3
    assert found["macs"] == 8 * 8 * 4 * 9 + 256 * 3


def test_sparsity_counts_weights_of_prunable_layers_only(task):
    model = Two()
    nn.init.zeros_(model.norm.bias)
    keep = torch.ones(3, 256, dtype=torch.bool)
    keep[:, :128] = False
    layers.set_mask(model.fc, keep)
    found = structure_metrics(model, task.example())
    assert found["sparsity"] == pytest.approx(384 / (36 + 768))
    assert found["nonzero_params"] == found["params"] - 384
    assert [row["sparsity"] for row in layer_table(model, task.example())] == pytest.approx([0, 0.5])


def test_counting_does_not_change_the_model(task):
    model = Two().train()
    before = copy.deepcopy(model.state_dict())
    structure_metrics(model, task.example())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    from tests.conftest import stripes_task

    task = stripes_task()
    pair = [models.build(name, task).eval() for name in ("digits_cnn", "digits_cnn_small")]
    folder = tmp_path_factory.mktemp("measured")
    untimed = [measure_model(model, task, folder / f"{i}.onnx", threads=1) for i, model in enumerate(pair)]
    return task, pair, folder, add_timings(untimed, task, threads=1)


def test_every_metric_is_measured(measured):
    task, pair, folder, found = measured
    for index, (model, one) in enumerate(zip(pair, found, strict=True)):
        assert set(EFFICIENCY_METRICS) == set(one.efficiency)
        assert all(value > 0 for name, value in one.efficiency.items() if name not in ("sparsity", "peak_memory_mb"))
        assert one.efficiency["size_mb"] == (folder / f"{index}.onnx").stat().st_size / 1e6
        assert one.efficiency["latency_ms"] <= one.efficiency["latency_ms_p95"]
        assert one.quality == evaluate(model, task.test, task)
        assert "CPUExecutionProvider" in one.backend


def test_the_smaller_model_is_smaller_by_every_count(measured):
    *_, (before, after) = measured
    for name in ("params", "macs", "size_mb", "size_mb_compressed"):
        assert after.efficiency[name] < before.efficiency[name]


def test_the_comparison_has_the_documented_names_and_directions(measured):
    task, *_, (before, after) = measured
    found = compare(before, after, task)
    assert found["params"] == after.efficiency["params"]
    assert found["params_before"] == before.efficiency["params"]
    assert found["compression_ratio"] == before.efficiency["size_mb"] / after.efficiency["size_mb"] > 1
    assert found["speedup"] == before.efficiency["latency_ms"] / after.efficiency["latency_ms"]
    assert found["macs_ratio"] == after.efficiency["macs"] / before.efficiency["macs"] < 1
    assert found["accuracy_kept"] == pytest.approx(after.quality["accuracy"] / before.quality["accuracy"])


def test_the_file_holds_its_weights_and_any_batch(measured):
    _, _, folder, found = measured
    model = onnx.load(folder / "0.onnx", load_external_data=False)
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert found[0].onnx["onnx_agreement"] == 1.0
    assert found[0].onnx["onnx_max_difference"] < 1e-4
