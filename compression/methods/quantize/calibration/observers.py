"""Observers: from the statistics of an activation to the range that its codes cover."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compression.nn.quantized import QParams, calc_qparams, code_range, dequantize, quantize

if TYPE_CHECKING:
    from compression.methods.quantize.calibration.activations import ActivationStatistics

BINS = 2048  # of the histogram of `entropy`: Migacz 2017
MSE_SAMPLE = 2**14  # values that `mse` quantizes for each of its candidate ranges
SHARES = torch.linspace(0.05, 1.0, 96)  # of the full range: the candidates of `mse` and `entropy`
OBSERVERS = ("minmax", "moving_average", "percentile", "entropy", "mse")
Range = tuple[Tensor, Tensor]  # lowest and highest value, scalars


def activation_qparams(bits: int, low: Tensor, high: Tensor, symmetric: bool = False) -> QParams:
    """Quantization parameters, per tensor with unsigned codes, of an activation with values low..high."""
    codes = code_range(bits, signed=False)
    return QParams(bits, *calc_qparams(low, high, *codes, symmetric=symmetric), *codes)


def representable_range(qparams: QParams) -> Range:
    """The lowest and the highest value that the codes of an activation can represent."""
    low, high = ((code - qparams.zero_point) * qparams.scale for code in (qparams.low, qparams.high))
    return low, high


def minmax(statistics: ActivationStatistics) -> Range:
    """From the smallest to the largest value."""
    return statistics.minima.min(), statistics.maxima.max()


def moving_average(statistics: ActivationStatistics, rate: float = 0.1) -> Range:
    """Exponential moving averages of the batches' minima and maxima: a single outlier counts little.

    Jacob et al. 2018, section 3.1.
    """

    def average(values: Tensor) -> Tensor:
        mean = values[0]
        for value in values[1:]:
            mean = mean + rate * (value - mean)
        return mean

    return average(statistics.minima), average(statistics.maxima)


def percentile(statistics: ActivationStatistics, percent: float) -> Range:
    """The middle `percent` of the values: half of the others are cut off at either end."""
    tail = (1 - percent / 100) / 2
    ordered = statistics.sample.sort().values
    positions = torch.tensor([tail, 1 - tail], dtype=torch.float64) * (len(ordered) - 1)
    low, high = ordered[positions.round().long()]
    return low, high


def mse(statistics: ActivationStatistics, bits: int) -> Range:
    """The range with the least squared quantization error; first its upper end is searched, then its lower."""
    low, high = minmax(statistics)
    values = statistics.sample[:: max(1, len(statistics.sample) // MSE_SAMPLE)]
    # One end after the other: 192 candidates, not 96 * 96 = 9,216.
    high = min((high * share for share in SHARES), key=lambda end: quantization_error(values, low, end, bits))
    low = min((low * share for share in SHARES), key=lambda end: quantization_error(values, end, high, bits))
    return low, high


def quantization_error(values: Tensor, low: Tensor, high: Tensor, bits: int) -> float:
    """Mean squared error of `values` after quantization with codes spread over low..high."""
    qparams = activation_qparams(bits, low, high)
    codes = quantize(values, qparams.scale, qparams.zero_point, qparams.low, qparams.high)
    return (dequantize(codes, qparams.scale, qparams.zero_point) - values).square().mean().item()


def entropy(statistics: ActivationStatistics, bits: int) -> Range:
    """The range around zero that loses the least information.

    Least Kullback-Leibler divergence over clipping thresholds: Migacz, 8-bit inference with TensorRT, 2017.
    """
    low, high = minmax(statistics)
    width = (high - low) / BINS
    if width == 0:
        return low, high
    counts = torch.histc(statistics.sample, BINS, low.item(), high.item())
    counts = level_zero_bin(counts, int(-low / width))
    candidates = {_clip_bins(low, high, width, share, 2**bits) for share in SHARES.tolist()}
    start, stop = min(sorted(candidates), key=lambda bins: clipping_divergence(counts, bins[0], bins[1], 2**bits))
    return low + start * width, low + stop * width


def _clip_bins(low: Tensor, high: Tensor, width: Tensor, share: float, levels: int) -> tuple[int, int]:
    """First bin of the range that extends `share` of the largest magnitude from zero, and the bin behind its last.

    It has at least as many bins as there are levels.
    """
    reach = share * torch.maximum(-low, high)
    start = int(((torch.maximum(low, -reach) - low) / width).floor())
    stop = int(((torch.minimum(high, reach) - low) / width).ceil())
    # With fewer bins than levels, each bin would have a level of its own, and rounding would seem to cost nothing.
    stop = min(BINS, max(stop, start + levels))
    return min(start, max(0, stop - levels)), stop


def level_zero_bin(counts: Tensor, zero: int) -> Tensor:
    """The counts `(bins,)` with the bin of zero, `zero`, as full as the next one.

    Behind a ReLU half of all values are zero. Zero is exact in any range, and its count would outweigh all the others.
    """
    return counts.index_copy(0, torch.tensor([min(zero, BINS - 1)]), counts[min(zero + 1, BINS - 1)].view(1))


def clipping_divergence(counts: Tensor, start: int, stop: int, levels: int) -> float:
    """KL divergence in nats between the counts `(bins,)` clipped to start..stop and the same in `levels` levels.

    The reference distribution has the clipped counts in its end bins, the quantized one lacks them; within a level
    counts spread evenly over the bins that were not empty. Migacz 2017.
    """
    inside = counts[start:stop].double()
    clipped = inside.clone()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    level = torch.arange(len(inside)) * levels // len(inside)  # of each bin, (stop - start,)
    total = torch.zeros(levels, dtype=torch.float64).index_add(0, level, inside)
    # Bins of each level that are not empty; then its counts, spread evenly over them, (stop - start,).
    filled = torch.zeros(levels, dtype=torch.float64).index_add(0, level, (inside > 0).double())
    spread = torch.where(inside > 0, (total / filled.clamp(min=1))[level], 0.0)
    reference, quantized = clipped / clipped.sum(), spread / spread.sum().clamp(min=1e-12)
    support = reference > 0
    # An end bin that only clipped counts fill has none in the quantized distribution: 1e-9 rather than a divergence
    # of infinity.
    ratio = reference[support] / quantized[support].clamp(min=1e-9)
    return (reference[support] * ratio.log()).sum().item()
