import pytest
import torch

from compression.nn.quantized import (
    QParams,
    calc_qparams,
    code_range,
    dequantize,
    merge_groups,
    pack,
    quantize,
    split_groups,
    unpack,
    weight_code_range,
)
from compression.nn.quantized.qparams import MAX_PAIR_SUM, require_exact_sums
from tests.deploy.qparams import weight_qparams

BITS = range(1, 9)


def test_a_scale_and_zero_point_by_hand():
    scale, zero_point = calc_qparams(torch.tensor(-1.0), torch.tensor(4.1), 0, 255, symmetric=False)
    assert scale.item() == pytest.approx(0.02)
    assert zero_point.item() == 50
    scale, zero_point = calc_qparams(torch.tensor(-1.0), torch.tensor(0.5), -64, 64, symmetric=True)
    assert (scale.item(), zero_point.item()) == (1 / 64, 0)
    scale, zero_point = calc_qparams(torch.tensor(-1.0), torch.tensor(2.54), 0, 255, symmetric=True)
    assert scale.item() == pytest.approx(0.02)
    assert zero_point.item() == 128


def test_zero_is_always_a_level():
    scale, zero_point = calc_qparams(torch.tensor([2.0, -3.0]), torch.tensor([5.0, -1.0]), 0, 15, symmetric=False)
    zeros = torch.zeros(2)
    assert torch.equal(dequantize(quantize(zeros, scale, zero_point, 0, 15), scale, zero_point), zeros)


def test_rounding_ties_to_even_as_onnx_does():
    codes = quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.tensor(1.0), torch.tensor(3.0), 0, 255)
    assert codes.tolist() == [3, 5, 5, 3]


def test_one_bit_has_two_levels_and_zero_is_the_upper():
    qparams = (torch.tensor(2.0), torch.tensor(0.5))
    codes = quantize(torch.tensor([-7.0, -1e-6, 0.0, 1e-6, 9.0]), *qparams, 0, 1)
    assert dequantize(codes, *qparams).tolist() == [-1, -1, 1, 1, 1]


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), [("tensor", 0), ("channel", 0), ("group", 5)])
def test_dequantized_values_differ_by_half_a_step_at_most(bits, symmetric, granularity, size):
    weight = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(bits))
    qparams = weight_qparams(weight, bits, granularity, size, symmetric)
    scale, zero_point = qparams.scale.unsqueeze(2), qparams.zero_point.unsqueeze(2)
    groups = split_groups(weight, granularity, size)
    back = dequantize(quantize(groups, scale, zero_point, qparams.low, qparams.high), scale, zero_point)
    # The zero point is rounded too, so an affine range can end up to half a step early.
    worst = scale * (0.5 if symmetric else 1.0)
    assert (back - groups).abs().le(worst * 1.0001).all()
    torch.testing.assert_close(merge_groups(groups, weight.shape), weight)
    assert qparams.granularity == granularity


@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_are_restored_exactly_and_take_their_bits(bits):
    low, high = code_range(bits, signed=True)
    codes = torch.randint(low, high + 1, (37, 5), generator=torch.Generator().manual_seed(0))
    codes[0, 0], codes[-1, -1] = low, high
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-37 * 5 * bits // 8)
    assert torch.equal(unpack(packed, bits, codes.numel()).view(codes.shape), codes.to(torch.int8))


def test_packing_by_hand():
    # -2, 1, -1, 0 as unsigned 2-bit numbers are 0, 3, 1, 2: 10 01 11 00 from the highest bit down.
    assert pack(torch.tensor([-2, 1, -1, 0]), 2).tolist() == [0b10011100]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation_bits", BITS)
def test_the_codes_of_a_weight_never_saturate_a_pair(bits, activation_bits):
    low, high = weight_code_range(bits, activation_bits)
    assert 2 * max(-low, high) * (2**activation_bits - 1) <= MAX_PAIR_SUM
    assert weight_code_range(8, 8) == (-64, 64)
    assert weight_code_range(8, None) == (-128, 127)


def test_codes_that_could_saturate_are_refused():
    require_exact_sums(torch.full((1, 4), 64), 255)
    with pytest.raises(ValueError, match="codes up to 65 with activations up to 255 saturate.*use codes up to 64"):
        require_exact_sums(torch.full((1, 4), 65), 255)
    with pytest.raises(ValueError, match="overflows 32 bits"):
        require_exact_sums(torch.full((1, 70_000), 64), 255)


def test_qparams_name_their_granularity_and_scheme():
    one = torch.ones(1, 1)
    assert QParams(8, one, 0 * one, -64, 64).granularity == "tensor"
    assert QParams(8, one.expand(3, 1), 0 * one, -64, 64).granularity == "channel"
    assert QParams(4, one.expand(3, 2), 0 * one, -8, 7, group_size=16).granularity == "group"
    assert [QParams(8, one, z * one, -64, 64).qscheme for z in (0, 3, -0.5)] == ["symmetric", "affine", "odd"]
