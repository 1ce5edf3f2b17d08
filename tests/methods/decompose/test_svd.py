"""Truncated SVD of linear layers, embeddings and 1x1 convolutions."""

import numpy as np
import pytest
import torch
from torch import nn

from compression.errors import UserError
from compression.methods.decompose.factorization.costs import FeatureMapSizes
from compression.methods.decompose.svd import Svd, layer_kind, truncated_svd


def test_the_error_is_that_of_the_singular_values_left_out():
    # diag(3, 2, 1, 0) at rank 2: sqrt(1) / sqrt(9 + 4 + 1)
    left, right, error = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])), 2)
    torch.testing.assert_close((left @ right).float(), torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0])))
    assert error == pytest.approx(14**-0.5)


def test_no_other_matrix_of_the_rank_is_nearer():
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 14)))
    left, right, error = truncated_svd(matrix, 3)
    assert (matrix - left @ right).norm() / matrix.norm() == pytest.approx(error, rel=1e-5)
    trained = [left.clone().requires_grad_(), right.clone().requires_grad_()]
    (matrix - trained[0] @ trained[1]).square().sum().backward()
    assert max(factor.grad.abs().max().item() for factor in trained) < 1e-4  # a minimum: no direction is downhill


def test_both_factors_have_the_same_norm():
    left, right, _ = truncated_svd(torch.randn(20, 30), 5)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_full_rank_computes_as_before(bias):
    layer = nn.Linear(12, 7, bias)
    chain, error, _ = Svd().factorize(layer, (7,), 0)
    assert [type(part) for part in chain] == [nn.Linear, nn.Linear]
    given = torch.randn(3, 5, 12)
    torch.testing.assert_close(chain(given), layer(given), rtol=1e-4, atol=1e-5)
    assert error < 1e-6


def test_a_1x1_convolution_of_full_rank_computes_as_before_with_its_stride():
    layer = nn.Conv2d(6, 9, 1, stride=2)
    chain, _, _ = Svd().factorize(layer, (6,), 0)
    given = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(chain(given), layer(given), rtol=1e-4, atol=1e-5)


def test_an_embedding_of_full_rank_computes_as_before_and_keeps_its_padding():
    layer = nn.Embedding(11, 6, padding_idx=0)
    chain, _, _ = Svd().factorize(layer, (6,), 0)
    assert [type(part) for part in chain] == [nn.Embedding, nn.Linear]
    assert chain[0].padding_idx == 0
    given = torch.tensor([[0, 3, 10]])
    torch.testing.assert_close(chain(given), layer(given), rtol=1e-4, atol=1e-5)
    assert chain(given)[0, 0].abs().max() < 1e-6


@pytest.mark.parametrize(
    "layer", [nn.Linear(10, 6), nn.Conv2d(10, 6, 1), nn.Embedding(10, 6)], ids=["linear", "pointwise", "embedding"]
)
def test_the_predicted_cost_is_that_of_the_layers_made(layer):
    chain, _, _ = Svd().factorize(layer, (2,), 0)
    sizes = Svd().factor_sizes(layer, FeatureMapSizes(5, 5, 5), (2,))
    assert [weights for weights, _ in sizes] == [part.weight.numel() for part in chain]
    assert [positions for _, positions in sizes] == ([0, 5] if isinstance(layer, nn.Embedding) else [5, 5])


def test_layers_of_groups_of_larger_kernels_and_rescaled_tables_stay():
    for layer in (
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3),
        nn.Embedding(9, 4, max_norm=1.0),
        nn.Bilinear(2, 2, 2),
    ):
        assert layer_kind(layer) == ""


def test_only_the_parts_that_are_named_are_taken():
    step = Svd(parts_of="embedding")
    assert step.can_decompose(nn.Embedding(9, 4))
    assert not step.can_decompose(nn.Linear(9, 4))


def test_an_unknown_part_is_refused_with_the_parts():
    with pytest.raises(UserError, match="parts_of='conv' is unknown; it is any of linear, pointwise, embedding"):
        Svd(parts_of="linear/conv")
