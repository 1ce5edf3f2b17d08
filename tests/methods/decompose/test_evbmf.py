"""EVBMF against the properties that Nakajima et al. 2013 prove or show, and against hand-worked cases."""

import numpy as np
import pytest

from compression.methods.decompose.factorization.evbmf import evbmf, free_energy, shrink, threshold


def planted(rank, shape, deviation, seed=0, strength=10.0):
    """A matrix of `rank` with noise, its singular values far above the noise's; and the same without the noise."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.normal(size=(side, rank)))[0] for side in shape)
    values = strength * deviation * np.sqrt(max(shape)) * np.linspace(1, 2, rank)
    truth = left * values @ right.T
    return truth + deviation * random.normal(size=shape), truth


def found(matrix):
    return evbmf(np.linalg.svd(matrix, compute_uv=False), matrix.shape)


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("shape", [(64, 64), (50, 200), (40, 1000)])
@pytest.mark.parametrize("deviation", [0.01, 3.0])
def test_a_planted_rank_is_found_exactly_and_the_noise_within_a_tenth(rank, shape, deviation):
    result = found(planted(rank, shape, deviation)[0])
    assert result.rank == rank
    assert result.noise_variance == pytest.approx(deviation**2, rel=0.1)


@pytest.mark.parametrize("shape", [(64, 64), (30, 300)])
@pytest.mark.parametrize("seed", range(3))
def test_pure_noise_has_rank_0_and_its_own_variance(shape, seed):
    result = found(2.0 * np.random.default_rng(seed).normal(size=shape))
    assert result.rank == 0
    assert result.noise_variance == pytest.approx(4.0, rel=0.05)


def test_a_matrix_without_noise_has_the_rank_it_has():
    random = np.random.default_rng(1)
    assert found(random.normal(size=(40, 7)) @ random.normal(size=(7, 90))).rank == 7


def test_a_matrix_of_zeros_has_rank_0_and_no_noise():
    result = evbmf(np.zeros(4), (4, 9))
    assert (result.rank, result.noise_variance) == (0, 0.0)


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0]])
def test_equal_values_are_noise(values):
    result = evbmf(np.array(values), (len(values), 9))
    assert (result.rank, result.noise_variance) == (0, pytest.approx(values[0] ** 2 / 9))


def test_the_transpose_gives_the_same():
    matrix, _ = planted(6, (50, 120), 0.5)
    one, other = found(matrix), found(matrix.T)
    assert one.noise_variance == pytest.approx(other.noise_variance)
    np.testing.assert_allclose(one.values, other.values)


@pytest.mark.parametrize("factor", [1e-4, 37.0])
def test_a_matrix_times_c_has_its_values_times_c_and_its_noise_times_c_squared(factor):
    matrix, _ = planted(6, (50, 120), 0.5)
    one, scaled = found(matrix), found(factor * matrix)
    assert one.noise_variance * factor**2 == pytest.approx(scaled.noise_variance, rel=1e-5)
    np.testing.assert_allclose(factor * one.values, scaled.values, rtol=1e-5)


def test_shrunk_values_come_nearer_to_the_matrix_behind_the_noise():
    matrix, truth = planted(3, (60, 240), 1.0, strength=2.0)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    estimate = found(matrix).values
    assert np.all(estimate < values[:3])
    errors = [np.linalg.norm(left[:, :3] * kept @ right[:3] - truth) for kept in (estimate, values[:3])]
    assert errors[0] < errors[1]


def test_the_threshold_is_the_papers():
    # Its approximation t = 2.5129 sqrt(alpha), which for a square matrix is the zero of log(1 + t) / t - 1/2 itself.
    assert threshold(1.0) == pytest.approx((1 + 2.5129) * (1 + 1 / 2.5129), rel=1e-4)
    for alpha in (0.5, 0.1, 0.01):
        t = 2.5129 * alpha**0.5
        assert threshold(alpha) == pytest.approx((1 + t) * (1 + alpha / t), rel=0.03)


def test_a_value_that_is_just_kept_has_the_estimate_worked_out_by_hand():
    # L = M = 1, sigma = 1, gamma = 4: 4/2 (1 - 2/16 + sqrt((1 - 2/16)^2 - 4/256)) = 2 (0.875 + 0.8660254)
    assert shrink(np.array([16.0]), 1.0, 1, 1) == pytest.approx(2 * (0.875 + 0.75**0.5))


def test_the_free_energy_is_continuous_where_a_value_begins_to_be_kept():
    x = threshold(0.3)
    below, above = (free_energy(np.array([x * (1 + step)]), 0.3) for step in (-1e-9, 1e-9))
    assert below == pytest.approx(above, abs=1e-6)


def test_singular_values_that_are_not_all_there_are_a_programming_error():
    with pytest.raises(ValueError, match="has 4 singular values, not 3"):
        evbmf(np.ones(3), (4, 9))
