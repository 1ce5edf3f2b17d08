"""CP decomposition of convolutions, and its warnings about fits that are not sound."""

import pytest
import torch
from torch import nn

from compression.methods.decompose.cp import Cp, balance_norms, cancellation, fit_cp, reconstruct
from compression.methods.decompose.factorization.costs import FeatureMapSizes


def planted(rank, shape=(12, 10, 3, 3)):
    torch.manual_seed(0)
    return reconstruct([torch.randn(side, rank) for side in shape])


def convolution(kernel, **geometry):
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), **geometry)
    layer.weight.data = kernel
    return layer


def test_a_kernel_of_the_rank_is_met_but_for_the_ridge():
    kernel = planted(2)
    factors, converged = fit_cp(kernel, 2, 200, 0)
    assert converged
    assert (reconstruct(factors) - kernel).norm() / kernel.norm() < 0.01


def test_components_keep_their_product_and_share_their_norm_evenly():
    factors = [torch.randn(side, 3).double() for side in (5, 4, 3, 2)]
    even = balance_norms(factors, 2.0)
    torch.testing.assert_close(reconstruct(even), 2 * reconstruct(factors))
    torch.testing.assert_close(even[0].norm(dim=0), even[3].norm(dim=0))


def test_orthogonal_components_do_not_cancel_and_opposite_ones_do():
    orthogonal = [torch.eye(2).double() for _ in range(4)]
    assert cancellation(orthogonal) == pytest.approx(1.0)
    # a - 0.9 a: components of squared norm 1 and 0.81 add up to 0.01
    opposite = [torch.tensor([[1.0, -0.9]]), *(torch.ones(1, 2) for _ in range(3))]
    assert cancellation(opposite) == pytest.approx(181, rel=1e-3)


def test_a_fit_that_does_not_converge_is_warned_of():
    _, _, warning = Cp(rounds=2).factorize(convolution(torch.randn(12, 10, 3, 3)), (8,), 0)
    assert "did not converge in 2 rounds" in warning


def noise():
    """A kernel of no structure at all, which lets components grow: any of them helps the others a little."""
    return torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))


def test_components_that_cancel_are_warned_of(monkeypatch):
    monkeypatch.setattr("compression.methods.decompose.cp.RIDGE", 1e-12)
    monkeypatch.setattr("compression.methods.decompose.cp.CONVERGED", 1e-9)
    _, _, warning = Cp(rounds=300).factorize(convolution(noise()), (40,), 0)
    assert "times as large as their sum" in warning


def test_the_ridge_keeps_components_from_growing_at_no_cost(monkeypatch):
    held, _ = fit_cp(noise(), 40, 100, 0)
    monkeypatch.setattr("compression.methods.decompose.cp.RIDGE", 1e-12)
    free, _ = fit_cp(noise(), 40, 100, 0)
    assert cancellation(held) < 5 < cancellation(free)
    errors = [(reconstruct(factors) - noise()).norm() for factors in (held, free)]
    assert errors[0] < 1.1 * errors[1]


def test_a_sound_fit_has_no_warning():
    _, error, warning = Cp().factorize(convolution(planted(2)), (2,), 0)
    assert warning == ""
    assert error < 0.01


def test_a_kernel_of_zeros_stays_zero():
    factors, _ = fit_cp(torch.zeros(4, 3, 3, 3), 2, 10, 0)
    assert not reconstruct(factors).any()


def test_the_same_seed_gives_the_same_factors():
    kernel = torch.randn(6, 5, 3, 3)
    one, other = (fit_cp(kernel, 8, 20, seed=3)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1},
        {"stride": (2, 1), "padding": (1, 0), "bias": False},
        {"padding": 2, "dilation": (2, 1)},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_the_four_convolutions_compute_what_one_with_the_fitted_kernel_does(geometry):
    layer = convolution(torch.randn(12, 10, 3, 5), **(geometry if geometry != {"padding": 1} else {"padding": (1, 2)}))
    chain, _, _ = Cp(rounds=5).factorize(layer, (4,), 0)
    assert [(part.kernel_size, part.groups) for part in chain] == [((1, 1), 1), ((3, 1), 4), ((1, 5), 4), ((1, 1), 1)]
    layer.weight.data = reconstruct(fit_cp(layer.weight, 4, 5, 0)[0]).float()
    given = torch.randn(2, 10, 11, 9)
    torch.testing.assert_close(chain(given), layer(given), rtol=1e-4, atol=1e-4)


def test_the_predicted_cost_is_that_of_the_layers_made():
    layer = nn.Conv2d(10, 12, 3, stride=2)
    chain, _, _ = Cp(rounds=1).factorize(layer, (4,), 0)
    sizes = Cp().factor_sizes(layer, FeatureMapSizes(100, 50, 25), (4,))
    assert [weights for weights, _ in sizes] == [part.weight.numel() for part in chain]
    assert [positions for _, positions in sizes] == [100, 50, 25, 25]


def test_at_the_full_rank_nothing_is_saved_and_just_below_it_something():
    layer = nn.Conv2d(10, 12, 3)
    [full] = Cp().full_ranks(layer)
    for rank, grows in ((full, False), (full + 1, True)):
        assert (
            sum(weights for weights, _ in Cp().factor_sizes(layer, FeatureMapSizes(), (rank,))) > layer.weight.numel()
        ) == grows


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (1, 3)), nn.Conv2d(4, 4, 3, groups=2)])
def test_convolutions_of_one_row_and_of_groups_stay(layer):
    assert not Cp().can_decompose(layer)
