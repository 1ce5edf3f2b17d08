"""Figures of the values that were quantized, with the ranges that their codes cover."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression.methods.quantize.calibration.activations import ActivationStatistics, observe_inputs
from compression.methods.quantize.calibration.observers import Range, representable_range
from compression.nn.quantized import QParams, merge_groups, split_groups
from compression.reporting.figures.quantize import histograms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from compression.nn.inputs import Inputs
    from compression.training.context import RunLogger

SHOWN = 4  # histograms in one figure


def evenly_spaced(names: Sequence[str]) -> list[str]:
    """At most SHOWN of the names, evenly spaced from the first to the last."""
    positions = np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)
    return [names[i] for i in positions]


def weight_in_steps(weight: Tensor, qparams: QParams) -> np.ndarray:
    """`weight` in units of its scales, where its codes are whole numbers; the shape stays."""
    groups = split_groups(weight.detach(), qparams.granularity, qparams.group_size)
    steps = groups / qparams.scale.unsqueeze(2) + qparams.zero_point.unsqueeze(2)
    values: np.ndarray = merge_groups(steps, weight.shape).float().cpu().numpy()
    return values


def log_weight_histograms(record: RunLogger, weights: Mapping[str, tuple[Tensor, QParams]]) -> None:
    """Record histograms of weights, by layer, in steps of their scales with the range of their codes."""
    steps = {name: weight_in_steps(*weight) for name, weight in weights.items()}
    codes = {name: (float(qparams.low), float(qparams.high)) for name, (_, qparams) in weights.items()}
    record.figure("weight-ranges", histograms(steps, codes, "weight in steps"))


def log_activation_histograms(
    record: RunLogger, statistics: Mapping[str, ActivationStatistics], ranges: Mapping[str, Range]
) -> None:
    """Record histograms of the inputs of layers with the ranges that their codes cover."""
    values = {name: found.sample.numpy() for name, found in statistics.items()}
    ends = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
    record.figure("activation-ranges", histograms(values, ends, "activation"))


def log_trained_ranges(
    record: RunLogger,
    model: nn.Module,
    weights: Mapping[str, tuple[Tensor, QParams]],
    inputs: Mapping[str, QParams],
    batches: Sequence[Inputs],
) -> None:
    """Record figures of some layers of a model after fake-quantization training, before its conversion.

    `weights` are those before rounding, `inputs` the parameters of what layers are given; `batches` show values of it.
    """
    log_weight_histograms(record, {name: weights[name] for name in evenly_spaced(list(weights))})
    if shown := {name: model.get_submodule(name) for name in evenly_spaced(list(inputs))}:
        statistics = {name: first for name, [first, *_] in observe_inputs(model, shown, batches).items()}
        log_activation_histograms(record, statistics, {name: representable_range(inputs[name]) for name in statistics})
