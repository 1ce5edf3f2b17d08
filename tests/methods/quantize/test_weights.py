import pytest
import torch

from compression.methods.quantize.calibration.weights import least_error_range, squared_error, weight_qparams
from compression.nn.quantized import calc_qparams, split_groups


def error(weight, qparams):
    groups = split_groups(weight, qparams.granularity, qparams.group_size)
    return squared_error(groups, qparams.scale, qparams.zero_point, qparams.low, qparams.high)


@pytest.fixture
def weight():
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))


def test_minmax_takes_the_largest_weight_to_the_last_code(weight):
    qparams = weight_qparams(weight, 8, activation_bits=8, observer="minmax")
    torch.testing.assert_close(qparams.scale.flatten(), weight.flatten(1).abs().amax(1) / 64)
    assert (qparams.low, qparams.high) == (-64, 64)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_the_least_error_is_no_larger_than_that_of_the_full_range(weight, bits, granularity):
    best, full = (weight_qparams(weight, bits, granularity, 9, observer=observer) for observer in ("mse", "minmax"))
    assert (error(weight, best) <= error(weight, full)).all()
    assert error(weight, best).sum() < error(weight, full).sum() or bits == 8


def test_the_least_error_is_that_of_the_best_share_of_each_channel(weight):
    groups, shares = split_groups(weight, "channel"), torch.linspace(1.0, 0.3, 15)
    scale, zero_point = least_error_range(groups, -2, 1, True, shares)
    tried = [calc_qparams(groups.amin(2) * s, groups.amax(2) * s, -2, 1, True) for s in shares.tolist()]
    errors = torch.stack([squared_error(groups, *one, -2, 1) for one in tried])
    torch.testing.assert_close(squared_error(groups, scale, zero_point, -2, 1), errors.amin(0))
    assert errors.argmin(0).unique().numel() > 1


def test_one_bit_is_the_sign_times_the_mean_magnitude(weight):
    qparams = weight_qparams(weight, 1)
    assert qparams.qscheme == "odd"
    torch.testing.assert_close(qparams.scale.flatten() / 2, weight.flatten(1).abs().mean(1))


def test_pruned_weights_stay_zero(weight):
    from compression.nn.quantized import dequantize, quantize

    weight[weight.abs() < 0.5] = 0
    for symmetric in (True, False):
        qparams = weight_qparams(weight, 4, symmetric=symmetric)
        scale, zero_point = qparams.scale.unsqueeze(2), qparams.zero_point.unsqueeze(2)
        groups = split_groups(weight, "channel")
        back = dequantize(quantize(groups, scale, zero_point, qparams.low, qparams.high), scale, zero_point)
        assert (back[groups == 0] == 0).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_finer_scales_are_closer_to_the_weights(weight, bits):
    weight *= torch.logspace(-1, 0, 8).view(-1, 1, 1, 1)
    errors = [error(weight, weight_qparams(weight, bits, g, 9)).sum() for g in ("tensor", "channel", "group")]
    assert errors == sorted(errors, reverse=True)
