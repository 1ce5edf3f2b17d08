"""Tucker-2 of convolutions."""

import pytest
import torch
from torch import nn

from compression.methods.decompose.factorization.costs import FeatureMapSizes
from compression.methods.decompose.tucker import Tucker, reconstruct, tucker2


def planted(outer, inner, shape=(12, 10, 3, 3)):
    """A kernel of these multilinear ranks."""
    torch.manual_seed(0)
    core = torch.randn(outer, inner, *shape[2:])
    return reconstruct(core, torch.randn(shape[0], outer), torch.randn(shape[1], inner))


def convolution(kernel, **geometry):
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), **geometry)
    layer.weight.data = kernel
    return layer


def test_a_kernel_of_the_ranks_is_met_exactly_with_orthonormal_factors():
    kernel = planted(3, 4)
    core, outer, inner = tucker2(kernel, (3, 4))
    torch.testing.assert_close(reconstruct(core, outer, inner), kernel.double(), rtol=1e-5, atol=1e-5)
    for factor, rank in ((outer, 3), (inner, 4)):
        torch.testing.assert_close(factor.T @ factor, torch.eye(rank, dtype=torch.float64))


def test_it_is_no_worse_than_cutting_each_unfolding_by_itself():
    kernel = torch.randn(12, 10, 3, 3, dtype=torch.float64)
    error = (kernel - reconstruct(*tucker2(kernel, (5, 4)))).norm()
    outer = torch.linalg.svd(kernel.flatten(1))[0][:, :5]  # the higher-order SVD: De Lathauwer et al. 2000
    inner = torch.linalg.svd(kernel.transpose(0, 1).flatten(1))[0][:, :4]
    core = torch.einsum("oihw,op,iq->pqhw", kernel, outer, inner)
    assert error <= (kernel - reconstruct(core, outer, inner)).norm()


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1, "bias": False},
        {"padding": 2, "dilation": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_the_chain_of_a_kernel_of_its_ranks_computes_as_before(geometry):
    layer = convolution(planted(3, 4), **geometry)
    chain, error, _ = Tucker().factorize(layer, (3, 4), 0)
    assert [part.kernel_size for part in chain] == [(1, 1), (3, 3), (1, 1)]
    given = torch.randn(2, 10, 9, 9)
    torch.testing.assert_close(chain(given), layer(given), rtol=1e-4, atol=1e-4)
    assert error < 1e-5


@pytest.mark.parametrize(("ranks", "kernels"), [((12, 4), [1, 3]), ((3, 10), [3, 1])])
def test_the_1x1_convolution_of_a_full_rank_is_left_out(ranks, kernels):
    layer = convolution(planted(*ranks), padding=1)
    chain, _, _ = Tucker().factorize(layer, ranks, 0)
    assert [part.kernel_size[0] for part in chain] == kernels
    assert [part.bias is not None for part in chain] == [False, True]
    given = torch.randn(2, 10, 6, 6)
    torch.testing.assert_close(chain(given), layer(given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [(3, 4), (12, 4), (3, 10)])
def test_the_predicted_cost_is_that_of_the_layers_made(ranks):
    layer = nn.Conv2d(10, 12, 3, stride=2)
    chain, _, _ = Tucker().factorize(layer, ranks, 0)
    sizes = Tucker().factor_sizes(layer, FeatureMapSizes(100, 50, 25), ranks)
    assert [weights for weights, _ in sizes] == [part.weight.numel() for part in chain]
    assert [positions for _, positions in sizes] == [
        100 if part[0].in_channels == 10 and ranks[1] < 10 else 25 for part in zip(chain, strict=True)
    ]


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4)])
def test_convolutions_of_1x1_and_of_groups_stay(layer):
    assert not Tucker().can_decompose(layer)
