import copy

import numpy as np
import pytest
import torch
from torch import nn

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.methods import method, parse
from compression.methods.quantize.cluster import parameter_groups, require_equal
from compression.methods.quantize.clustering import huffman_file
from compression.methods.quantize.clustering.kmeans import build_codebook, kmeans
from compression.methods.quantize.clustering.layers import SharedLinear
from compression.nn import layers
from compression.nn.quantized.clustered import ClusteredConv2d, ClusteredLinear

VALUES = torch.randn(400, generator=torch.Generator().manual_seed(0))


def test_kmeans_by_hand():
    centroids, index = kmeans(torch.tensor([0.0, 1.0, 9.0, 10.0, 11.0]), 2)
    assert centroids.tolist() == [0.5, 10.0]
    assert index.tolist() == [0, 0, 1, 1, 1]


def test_kmeans_ends_where_each_value_is_nearest_to_the_mean_of_its_own_cluster():
    centroids, index = kmeans(VALUES, 8)
    assert torch.equal(index, (VALUES.unsqueeze(1) - centroids).abs().argmin(1))
    for number in index.unique().tolist():
        assert VALUES[index == number].mean().item() == pytest.approx(centroids[number].item(), abs=1e-5)


def test_more_values_than_weights_leave_each_weight_its_own():
    weight = torch.tensor([[0.5, -1.0], [2.0, 0.5]])
    book, index, has_zeros = build_codebook(weight, 8)
    assert torch.equal(book[index], weight)
    assert (len(book), has_zeros) == (3, False)


def test_only_pruned_weights_are_zero():
    weight = torch.where(VALUES.abs() > 1, VALUES, 0.0).view(20, 20)
    book, index, has_zeros = build_codebook(weight, 3)
    assert has_zeros
    assert len(book) == 8
    assert torch.equal(index == 0, weight == 0)


def test_a_layer_of_zeros_has_one_value():
    book, index, has_zeros = build_codebook(torch.zeros(3, 4), 2)
    assert (book.tolist(), index.sum().item(), has_zeros) == ([0.0], 0, True)


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[0] = 0.0
    training = SharedLinear(layer, 2)
    inputs, outer = torch.randn(5, 6), torch.randn(5, 4)
    (training(inputs) * outer).sum().backward()
    by_weight = outer.t() @ inputs
    expected = torch.zeros(4).index_add(0, training.index.flatten(), by_weight.flatten())
    expected[0] = 0.0  # the value of the pruned is zero and stays so
    torch.testing.assert_close(training.codebook.grad, expected)


def test_centroids_have_a_learning_rate_of_their_own():
    model = nn.Sequential(SharedLinear(nn.Linear(6, 4), 2), nn.BatchNorm1d(4))
    found = parameter_groups(model, 0.003)
    assert [p is model[0].codebook for p in found[-1]["params"]] == [True]
    assert found[-1]["lr"] == 0.003
    assert sum(len(g["params"]) for g in found) == len(list(model.parameters()))


# --- the coded file -------------------------------------------------------------------------------------------------


def test_gaps_by_hand_and_a_long_one_is_filled_with_a_zero():
    indices = np.zeros(600, dtype=np.int64)
    indices[[2, 3, 560]] = [5, 6, 7]
    gaps, values = huffman_file.split_gaps(indices, 0)
    assert gaps.tolist() == [2, 0, 255, 255, 44]  # 556 zeros are 256 + 256 + 44
    assert values.tolist() == [5, 6, 0, 0, 7]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_indices_come_back_however_many_are_zero(share):
    generator = np.random.default_rng(0)
    indices = np.where(generator.random((70, 90)) < share, 0, generator.integers(1, 16, (70, 90)))
    layer = huffman_file.encode_indices(indices, 16, zero=0)
    assert np.array_equal(huffman_file.decode_indices(layer, indices.size, 0), indices.ravel())
    assert (layer.gaps is not None) == (share > 0.9)


def clustered(sparsity=0.0):
    """A convolution, a norm and a linear layer that share values."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 24, 3), nn.Linear(24 * 36, 64)
    for layer in (conv, linear):
        with torch.no_grad():
            layer.weight[torch.rand_like(layer.weight) < sparsity] = 0.0
    made = []
    for layer, bits, cls in ((conv, 4, ClusteredConv2d), (linear, 3, ClusteredLinear)):
        book, index, _ = build_codebook(layer.weight, bits)
        sizes = (3, 24, (3, 3)) if cls is ClusteredConv2d else (24 * 36, 64)
        made.append(cls(*sizes, bits=bits).set_indices(index, book, layer.bias))
    return nn.Sequential(made[0], nn.BatchNorm2d(24), nn.Flatten(), made[1]).eval()


@pytest.mark.parametrize("sparsity", [0.0, 0.95])
def test_the_file_reads_back_bit_for_bit(sparsity, tmp_path):
    model = clustered(sparsity)
    sizes = huffman_file.write(model, tmp_path / "model.huffman")
    found = huffman_file.read(tmp_path / "model.huffman")
    require_equal(found, model)
    assert torch.equal(found["3.weight"], model[3].weight)
    assert torch.equal(found["1.running_var"], model[1].running_var)
    assert sum(sizes.values()) < (tmp_path / "model.huffman").stat().st_size
    weights = model[3].weight.numel()
    assert sizes["3"] * 8 / weights < (3.02 if sparsity == 0 else 0.6)  # uniform weights: nothing to gain


def test_a_file_that_holds_something_else_is_noticed(tmp_path):
    model = clustered()
    huffman_file.write(model, tmp_path / "model.huffman")
    found = huffman_file.read(tmp_path / "model.huffman")
    found["3.weight"][0, 0] += 1e-7
    with pytest.raises(RuntimeError, match="3.weight came back"):
        require_equal(found, model)


def test_the_onnx_file_holds_packed_indices_and_answers_alike(tmp_path):
    model = clustered()
    images = torch.randn(4, 3, 8, 8)
    path = export(model, images, tmp_path / "model.onnx")
    torch.testing.assert_close(Session(path)(images), model(images).detach(), rtol=1e-4, atol=1e-5)
    packed = model[0].packed.numel() + model[3].packed.numel()
    assert packed < path.stat().st_size < packed + 6000


# --- the method -----------------------------------------------------------------------------------------------------


def test_the_compression_ratio_of_a_pruned_model_is_that_of_the_bytes(task, make_context):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    for layer in layers.prunable_layers(model).values():
        layers.set_mask(layer, layer.weight.abs() > layer.weight.abs().quantile(0.9))
    gone = {name: layer.weight == 0 for name, layer in layers.prunable_layers(model).items()}
    [step] = parse("cluster:epochs=1")
    found = step.apply(model, context)
    size = (context.folder / "model.huffman").stat().st_size
    original = sum(4 * t.numel() for t in context.original.state_dict().values() if t.is_floating_point())
    [(_, ratio)] = context.record.history["huffman_ratio"]
    assert ratio == pytest.approx(original / size)
    assert ratio > 12
    assert context.record.history["huffman_mb"] == [(None, size / 1e6)]
    assert all(torch.equal(found.get_submodule(name).weight == 0, zero) for name, zero in gone.items())
    assert found.fc.indices.unique().numel() <= 32
    assert [row["layer"] for row in context.record.tables["huffman"]] == list(gone)


def test_training_moves_the_values_and_not_the_indices(task, make_context):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    still = method("cluster")(epochs=0, conv_bits=3, bits=3).apply(copy.deepcopy(model), context)
    moved = method("cluster")(epochs=1, conv_bits=3, bits=3).apply(model, context)
    assert torch.equal(moved.hidden.fc.indices, still.hidden.fc.indices)
    assert not torch.equal(moved.hidden.fc.codebook, still.hidden.fc.codebook)
