import math

import pytest
import torch

from compression.methods.quantize.calibration import observers
from compression.methods.quantize.calibration.activations import ActivationStatistics
from compression.methods.quantize.calibration.observers import clipping_divergence, quantization_error


def statistics(values, minima=None, maxima=None):
    values = torch.as_tensor(values, dtype=torch.float32)
    minima = torch.tensor(minima if minima is not None else [values.min()])
    maxima = torch.tensor(maxima if maxima is not None else [values.max()])
    return ActivationStatistics(minima, maxima, values, torch.zeros(1))


def test_minmax_by_hand():
    low, high = observers.minmax(statistics([0.0], minima=[-1.0, -3.0, 0.5], maxima=[2.0, 1.0, 4.0]))
    assert (low, high) == (-3, 4)


def test_the_moving_average_by_hand():
    low, high = observers.moving_average(
        statistics([0.0], minima=[-1.0, -2.0, 0.0], maxima=[10.0, 20.0, 0.0]), rate=0.1
    )
    assert low.item() == pytest.approx(((-1 * 0.9 - 2 * 0.1) * 0.9) + 0 * 0.1)
    assert high.item() == pytest.approx((10 * 0.9 + 20 * 0.1) * 0.9)


def test_the_percentile_by_hand():
    low, high = observers.percentile(statistics(torch.arange(1001.0)), percent=99.0)
    assert (low, high) == (5, 995)
    low, high = observers.percentile(statistics(torch.arange(1001.0)), percent=100.0)
    assert (low, high) == (0, 1000)


def test_the_rounding_error_by_hand():
    # Two bits over 0..3 have the levels 0 1 2 3: 0.5 rounds to 0, 1.25 to 1, and 5 is clipped to 3.
    error = quantization_error(torch.tensor([0.5, 1.25, 5.0]), torch.tensor(0.0), torch.tensor(3.0), bits=2)
    assert error == pytest.approx((0.25 + 0.0625 + 4) / 3)


def test_mse_finds_the_range_of_the_least_error():
    values = torch.cat([torch.linspace(0, 1, 2000), torch.tensor([10.0])])
    low, high = observers.mse(statistics(values), bits=4)
    assert low == 0
    ends = torch.linspace(0.5, 10.0, 96)
    errors = [quantization_error(values, torch.tensor(0.0), end, bits=4) for end in ends]
    assert quantization_error(values, low, high, bits=4) <= min(errors) * 1.01
    assert high < 10


def test_mse_keeps_all_of_what_has_no_tails():
    low, high = observers.mse(statistics(torch.linspace(-1, 1, 5001)), bits=8)
    assert (low.item(), high.item()) == pytest.approx((-1, 1), abs=0.02)


def test_the_divergence_of_the_example_of_tensorrt():
    # Migacz 2017: 8 bins into 2 levels; 1+0+2+3 over three filled bins, 5+3+1+7 over four.
    counts = torch.tensor([1.0, 0, 2, 3, 5, 3, 1, 7])
    rounded = [2, 0, 2, 2, 4, 4, 4, 4]
    expected = sum(p / 22 * math.log(p / q) for p, q in zip(counts.tolist(), rounded, strict=True) if p)
    assert clipping_divergence(counts, 0, 8, levels=2) == pytest.approx(expected)


def test_clipped_counts_fall_into_the_end_bins_of_the_true_distribution_alone():
    # Bins 1..5 of 6: the true counts are 1+2 4 4 3+1, the rounded ones (2+4)/2 twice and (4+3)/2 twice.
    counts = torch.tensor([1.0, 2, 4, 4, 3, 1])
    true, rounded = [3, 4, 4, 4], [3, 3, 3.5, 3.5]
    expected = sum(p / 15 * math.log(p / 15 * 13 / q) for p, q in zip(true, rounded, strict=True))
    assert clipping_divergence(counts, 1, 5, levels=2) == pytest.approx(expected)


def test_entropy_cuts_off_an_outlier_and_keeps_a_flat_distribution():
    generator = torch.Generator().manual_seed(0)
    bulk = torch.randn(20_000, generator=generator)
    low, high = observers.entropy(statistics(torch.cat([bulk, torch.tensor([60.0])])), bits=8)
    assert 2 < high < 20
    assert low == bulk.min()
    low, high = observers.entropy(statistics(torch.rand(50_000, generator=generator)), bits=8)
    assert high > 0.95


def test_zeros_do_not_make_entropy_cut_off_the_rest():
    """Behind a ReLU half of the values are zero; their one bin outweighed all others, which were cut off."""
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    positive = values[values > 0]
    low, high = observers.entropy(statistics(values.relu()), bits=8)
    assert low == 0
    assert high == observers.entropy(statistics(torch.cat([positive, torch.zeros(1)])), bits=8)[1]
    assert (positive > high).float().mean() < 0.01


@pytest.mark.parametrize("name", ["minmax", "moving_average"])
def test_a_constant_activation_has_a_range(name):
    low, high = getattr(observers, name)(statistics(torch.zeros(10)))
    assert low == high == 0
    for search in (observers.mse, observers.entropy):
        assert search(statistics(torch.zeros(10)), 8) == (0, 0)
