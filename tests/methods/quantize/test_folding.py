import pytest
import torch
from torch import nn

from compression import models
from compression.methods.quantize.graph.equalization import equalize, equalize_pair
from compression.methods.quantize.graph.folding import fold_batch_norms, swap_pools_and_relus
from compression.models import storage
from tests.conftest import tiny_bert, words_task


def model_with_statistics(name, task):
    """A model whose batch norms have seen data and whose biases are not zero."""
    torch.manual_seed(0)
    model = models.build(name, task)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(task.train.prepare(task.train.inputs[:64]))
    return model.eval()


@pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
def test_folding_leaves_the_answers_and_no_batch_norm(name, task, tmp_path):
    model = model_with_statistics(name, task)
    before = model(task.example(8))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    folded = fold_batch_norms(model, task.example(2))
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    assert len(set(folded)) == len(norms)
    torch.testing.assert_close(model(task.example(8)), before, rtol=1e-3, atol=1e-4)
    again = storage.load(storage.save(model, tmp_path / "model", {}))
    assert torch.equal(again(task.example(8)), model(task.example(8)))


def test_a_norm_that_follows_no_layer_stays():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, images):
            hidden = self.conv(images)
            return self.one(hidden) + self.two(hidden)

    model = Odd().eval()
    assert fold_batch_norms(model, torch.zeros(2, 1, 8, 8)) == []
    assert isinstance(model.one, nn.BatchNorm2d)


def test_a_transformer_has_nothing_to_fold_or_equalize():
    model, example = tiny_bert(), words_task().example(2)
    assert fold_batch_norms(model, example) == []
    assert equalize(model, example) == []


def test_a_relu_comes_before_its_pooling_and_the_answers_stay(task):
    model = model_with_statistics("digits_cnn", task)
    before = model(task.example(8))
    swap_pools_and_relus(model, task.example(2))
    assert torch.equal(model(task.example(8)), before)
    names = [type(m).__name__ for m in model.stages[0]]
    assert names.index("ReLU") < names.index("MaxPool2d")


def test_equalising_a_pair_by_hand():
    before, after = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        before.weight.copy_(torch.tensor([[8.0], [1.0]]))
        before.bias.copy_(torch.tensor([4.0, 1.0]))
        after.weight.copy_(torch.tensor([[2.0, 9.0]]))
    equalize_pair(before, after)
    # Both sides of a channel get sqrt(r1 r2): sqrt(16) = 4 and sqrt(9) = 3.
    assert before.weight.flatten().tolist() == pytest.approx([4, 3])
    assert after.weight.flatten().tolist() == pytest.approx([4, 3])
    assert before.bias.tolist() == pytest.approx([2, 3])


def test_equalising_leaves_the_answers_and_evens_the_ranges(task):
    model = model_with_statistics("resnet8", task)
    fold_batch_norms(model, task.example(2))
    before = model(task.example(8))
    pairs = equalize(model, task.example(2))
    assert ("stages.0.0.conv1", "stages.0.0.conv2") in pairs
    assert not any("conv2" in first for first, _ in pairs)  # a sum follows: its channels are not free
    torch.testing.assert_close(model(task.example(8)), before, rtol=1e-3, atol=1e-3)
    for first, second in pairs:
        outgoing = model.get_submodule(first).weight.flatten(1).abs().amax(1)
        incoming = model.get_submodule(second).weight.transpose(0, 1).flatten(1).abs().amax(1)
        torch.testing.assert_close(outgoing, incoming, rtol=1e-3, atol=1e-4)


def test_a_dead_channel_is_left_alone():
    before, after = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        before.weight[0] = 0
    equalize_pair(before, after)
    assert torch.isfinite(before.bias).all()
    assert torch.isfinite(after.weight).all()
