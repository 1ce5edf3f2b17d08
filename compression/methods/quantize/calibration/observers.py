"""From what an activation was seen to hold to the range that its codes shall cover."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.nn.quantized import calc_qparams, code_range, dequantize, quantize

BINS = 2048  # of the histogram that `entropy` looks at; Migacz 2017
FEW = 2**14  # values that `mse` rounds again and again
OBSERVERS = ("minmax", "moving_average", "percentile", "entropy", "mse")
Bounds = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Observed:
    """What one input of a layer held over the calibration data."""

    minima: Tensor  # (batches,)
    maxima: Tensor  # (batches,)
    sample: Tensor  # (n,), values picked at random
    means: Tensor  # (channels,), or (features,) of a linear layer


def minmax(observed: Observed) -> Bounds:
    """From the smallest to the largest value seen."""
    return observed.minima.min(), observed.maxima.max()


def moving_average(observed: Observed, rate: float = 0.1) -> Bounds:
    """Exponential moving averages of the batches' ends: one odd one counts little.  Jacob et al. 2018, section 3.1."""

    def average(values: Tensor) -> Tensor:
        mean = values[0]
        for value in values[1:]:
            mean = mean + rate * (value - mean)
        return mean

    return average(observed.minima), average(observed.maxima)


def percentile(observed: Observed, percent: float) -> Bounds:
    """The range left when half of what lies beyond `percent` is cut off at either end."""
    beyond = (1 - percent / 100) / 2
    ordered = observed.sample.sort().values
    places = torch.tensor([beyond, 1 - beyond], dtype=torch.float64) * (len(ordered) - 1)
    low, high = ordered[places.round().long()]
    return low, high


def mse(observed: Observed, bits: int) -> Bounds:
    """The range of the least squared error of the rounded values; first its upper end is drawn in, then its lower."""
    low, high = minmax(observed)
    shares = torch.linspace(0.05, 1.0, 96)
    values = observed.sample[:: max(1, len(observed.sample) // FEW)]
    high = min((high * share for share in shares), key=lambda end: rounding_error(values, low, end, bits))
    low = min((low * share for share in shares), key=lambda end: rounding_error(values, end, high, bits))
    return low, high


def rounding_error(values: Tensor, low: Tensor, high: Tensor, bits: int) -> float:
    """Mean squared difference that codes spread over low..high make."""
    codes = code_range(bits, signed=False)
    scale, zero_point = calc_qparams(low, high, *codes, symmetric=False)
    back = dequantize(quantize(values, scale, zero_point, *codes), scale, zero_point)
    return (back - values).square().mean().item()


def entropy(observed: Observed, bits: int) -> Bounds:
    """The range around zero whose rounded distribution tells the most of the true one.

    Least Kullback-Leibler divergence over clipping thresholds: Migacz, 8-bit inference with TensorRT, 2017.
    """
    low, high = minmax(observed)
    width = (high - low) / BINS
    if width == 0:
        return low, high
    counts = without_zeros(torch.histc(observed.sample, BINS, low.item(), high.item()), int(-low / width))
    cuts = {_cut(low, high, width, share, 2**bits) for share in torch.linspace(0.05, 1.0, 96).tolist()}
    start, stop = min(sorted(cuts), key=lambda cut: clipping_divergence(counts, cut[0], cut[1], 2**bits))
    return low + start * width, low + stop * width


def _cut(low: Tensor, high: Tensor, width: Tensor, share: float, levels: int) -> tuple[int, int]:
    """First and last bin of the range that reaches `share` of the way from zero; at least a bin for each level."""
    reach = share * torch.maximum(-low, high)
    start = int(((torch.maximum(low, -reach) - low) / width).floor())
    stop = int(((torch.minimum(high, reach) - low) / width).ceil())
    stop = min(BINS, max(stop, start + levels))
    return min(start, max(0, stop - levels)), stop


def without_zeros(counts: Tensor, zero: int) -> Tensor:
    """The counts with zero's bin as full as the next: zeros are exact in any range, and would drown the rest."""
    return counts.index_copy(0, torch.tensor([min(zero, BINS - 1)]), counts[min(zero + 1, BINS - 1)].view(1))


def clipping_divergence(counts: Tensor, start: int, stop: int, levels: int) -> float:
    """KL divergence in nats between counts clipped to bins start..stop and the same in `levels` steps.

    Clipped mass falls into the end bins of the first, and is missing in the second; within a step the counts spread
    evenly over the bins that were not empty.
    """
    inside = counts[start:stop].double()
    clipped = inside.clone()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    step = torch.arange(len(inside)) * levels // len(inside)
    total = torch.zeros(levels, dtype=torch.float64).index_add(0, step, inside)
    filled = torch.zeros(levels, dtype=torch.float64).index_add(0, step, (inside > 0).double())
    rounded = torch.where(inside > 0, (total / filled.clamp(min=1))[step], 0.0)
    true, seen = clipped / clipped.sum(), rounded / rounded.sum().clamp(min=1e-12)
    there = true > 0
    # An end bin that only clipped mass fills has no counterpart: almost nothing rather than an infinite divergence.
    return (true[there] * (true[there] / seen[there].clamp(min=1e-9)).log()).sum().item()
