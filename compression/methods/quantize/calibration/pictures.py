"""Histograms of what was quantized, with the range that was chosen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from compression.methods.quantize.calibration.activations import observe
from compression.nn.inputs import Inputs
from compression.nn.quantized import QParams, merge_groups, split_groups
from compression.reporting.figures.quantize import histograms
from compression.training.context import RunLogger

SHOWN = 4  # histograms in one picture


def spread(names: list[str]) -> list[str]:
    """At most SHOWN of the names, from the first to the last."""
    places = np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)
    return [names[i] for i in places]


def in_steps(weight: Tensor, numbers: QParams) -> np.ndarray:
    """A weight in steps of its scales, where its codes are whole numbers."""
    groups = split_groups(weight.detach(), numbers.granularity, numbers.group_size)
    steps = groups / numbers.scale.unsqueeze(2) + numbers.zero_point.unsqueeze(2)
    return merge_groups(steps, weight.shape).float().cpu().numpy()


def ends(numbers: QParams) -> tuple[float, float]:
    """The lowest and the highest value that an activation's codes mean."""
    low, high = ((code - numbers.zero_point) * numbers.scale for code in (numbers.low, numbers.high))
    return float(low), float(high)


def keep_trained(
    record: RunLogger,
    model: nn.Module,
    weights: Mapping[str, tuple[Tensor, QParams]],
    inputs: Mapping[str, QParams],
    data: list[Inputs],
) -> None:
    """Pictures of some layers of a model trained for its numbers: weights before they are rounded, and inputs."""
    shown = {name: weights[name] for name in spread(list(weights))}
    steps = {name: in_steps(*held) for name, held in shown.items()}
    codes = {name: (numbers.low, numbers.high) for name, (_, numbers) in shown.items()}
    record.figure("weight-ranges", histograms(steps, codes, "weight in steps"))
    if watched := {name: model.get_submodule(name) for name in spread(list(inputs))}:
        seen = observe(model, watched, data)
        values = {name: held[0].sample.numpy() for name, held in seen.items()}
        record.figure("activation-ranges", histograms(values, {n: ends(inputs[n]) for n in values}, "activation"))
