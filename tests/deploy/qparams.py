"""Quantization parameters by minimum and maximum, for tests of layers and their export."""

import torch

from compression.nn.quantized import QParams, calc_qparams, code_range, split_groups, weight_code_range


def weight_qparams(weight, bits=8, granularity="channel", group_size=0, symmetric=True, activation_bits=None):
    """From the smallest to the largest value; one bit takes {-1, +1} times the mean magnitude."""
    low, high = weight_code_range(bits, activation_bits)
    groups = split_groups(weight.detach(), granularity, group_size)
    scale, zero_point = calc_qparams(groups.amin(2), groups.amax(2), low, high, symmetric)
    if bits == 1:
        scale, zero_point = 2 * groups.abs().mean(2), torch.full_like(scale, -0.5)
    return QParams(bits, scale, zero_point, low, high, group_size)


def input_qparams(low, high, bits=8):
    codes = code_range(bits, signed=False)
    return QParams(bits, *calc_qparams(torch.tensor(float(low)), torch.tensor(float(high)), *codes, False), *codes)
