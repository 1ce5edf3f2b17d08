import copy

import torch

from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.methods.prune.structure.empty_units import remove_empty_units
from compression.methods.prune.structure.layer_sizes import LayerSize, size_table
from compression.methods.prune.structure.layer_sizes import layer_sizes as sizes_of
from compression.models import storage
from compression.nn import transformer
from compression.nn.inputs import forward
from compression.reporting.figures.prune import layer_sizes
from compression.tasks.task import predict
from tests.conftest import tiny_bert, words_task


def hollow():
    """A BERT with biases, in which heads and neurons are empty on one side or the other."""
    torch.manual_seed(0)
    model = tiny_bert(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    parts = transformer.blocks(model)
    parts[0].value.weight.data[:8] = 0  # head 0 is constant
    parts[0].output.weight.data[:, 24:] = 0  # head 3 is not used
    parts[1].up.weight.data[::2] = 0
    parts[1].down.weight.data[:, 1] = 0
    parts[2].value.weight.data[:] = 0
    parts[2].up.weight.data[:] = 0
    return model.eval()


def test_empty_heads_and_neurons_are_cut_and_the_answers_stay():
    model, task = hollow(), words_task()
    inputs = task.example(8)
    before = forward(model, inputs)
    cut = remove_empty_units(copy.deepcopy(model))
    assert sizes_of(cut) == [(2, 48, 32), (4, 23, 32), (1, 1, 32)]
    torch.testing.assert_close(forward(cut, inputs), before, rtol=1e-4, atol=1e-4)


def test_what_is_cut_reloads_and_exports(tmp_path):
    cut, task = remove_empty_units(hollow()), words_task()
    again = storage.load(storage.save(cut, tmp_path / "model", {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(cut, task.test)[0])
    file = export(cut, task.example(4), tmp_path / "model.onnx")
    assert check_parity(cut, file, task.test, task, threads=1).agreement == 1.0


def test_a_whole_model_is_left_alone():
    model = tiny_bert(3)
    before = [p.clone() for p in model.parameters()]
    remove_empty_units(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_table_and_the_picture_show_what_each_layer_kept():
    before = [LayerSize(4, 8, 16), LayerSize(4, 8, 16)]
    after = [LayerSize(1, 8, 16), LayerSize(4, 3, 16)]
    assert size_table(before, after)[0] == {
        "layer": 0,
        "heads_before": 4,
        "neurons_before": 8,
        "hidden_before": 16,
        "heads": 1,
        "neurons": 8,
        "hidden": 16,
    }
    heads, neurons = layer_sizes([s._asdict() for s in before], [s._asdict() for s in after]).axes
    assert [bar.get_height() for bar in heads.patches] == [4, 4, 1, 4]
    assert [bar.get_height() for bar in neurons.patches] == [8, 8, 8, 3]
