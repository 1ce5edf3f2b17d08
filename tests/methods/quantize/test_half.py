import copy

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from compression import models
from compression.deploy.measure import layer_table, structure_metrics
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.errors import UserError
from compression.methods import method, parse
from compression.models import storage
from compression.nn import layers
from compression.nn.inputs import forward
from compression.tasks.task import predict
from tests.conftest import tiny_bert, words_task

TYPES = {"fp16": (torch.float16, TensorProto.FLOAT16), "bf16": (torch.bfloat16, TensorProto.BFLOAT16)}


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_are_the_nearest_halves_and_answers_follow(dtype, task, make_context):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    found = parse(f"half:dtype={dtype}")[0].apply(model, context).eval()
    kind = TYPES[dtype][0]
    for name, layer in layers.prunable_layers(context.original).items():
        assert torch.equal(found.get_submodule(name).weight, layer.weight.to(kind))
    ours, theirs = predict(found, task.test)[0], predict(context.original, task.test)[0]
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
    assert {row["bits"] for row in layer_table(found, task.example())} == {16}
    before = structure_metrics(context.original, task.example())
    assert structure_metrics(found, task.example()) == before


@pytest.mark.parametrize("dtype", TYPES)
def test_the_file_holds_halves_and_a_transformer_answers_alike(dtype, tmp_path, make_context):
    torch.manual_seed(0)
    task, model = words_task(), tiny_bert()
    context = make_context(task, copy.deepcopy(model))
    found = method("half")(dtype=dtype).apply(model, context).eval()
    again = storage.load(storage.save(found, tmp_path / "model", {}))
    example = task.example(4)
    torch.testing.assert_close(forward(again, example), forward(found, example), rtol=0, atol=0)
    path = export(found, example, tmp_path / "model.onnx")
    torch.testing.assert_close(Session(path)(example), forward(found, example).detach(), rtol=1e-3, atol=1e-4)
    halves = [t for t in onnx.load(path).graph.initializer if t.data_type == TYPES[dtype][1]]
    stored = sum(torch.Size(t.dims).numel() for t in halves)
    weights = [m.weight for m in found.modules() if hasattr(m, "stored")]
    assert stored >= sum(w.numel() for w in weights) - 24 * 32  # tied or small: none of the large ones is missing


def test_a_weight_that_fp16_cannot_hold_is_refused(task, make_context):
    model = models.build("mlp", task)
    with torch.no_grad():
        model.fc.weight[0, 0] = 1e6
    context = make_context(task, copy.deepcopy(model))
    with pytest.raises(UserError, match="A weight of fc is too large for fp16; use dtype=bf16 or skip=fc"):
        method("half")().apply(copy.deepcopy(model), context)
    assert type(method("half")(skip="fc").apply(copy.deepcopy(model), context).fc) is nn.Linear
    method("half")(dtype="bf16").apply(model, context)
