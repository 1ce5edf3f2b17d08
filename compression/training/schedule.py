"""Learning rate schedules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from compression.training.hyperparameters import Training

ONE_CYCLE_WARMUP = 0.3  # share of the steps, where neither the training nor the task says
# OneCycleLR's div_factor of 25, and its final_div_factor of 1e4 below that
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4  # shares of the peak at the first step and after the last


def make_scheduler(
    optimizer: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate schedule over `steps`: warm up, then fall (or stay) as the training says."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(training, steps))


def learning_rate_factor(training: Training, steps: int) -> Callable[[int], float]:
    """The learning rate at a step (from 0) of `steps`, as a share of its peak.

    `onecycle` is that of Smith & Topin 2018, arXiv:1708.07120, as in `torch.optim.lr_scheduler.OneCycleLR`, which
    divides by zero where the warm-up is one step long. With a warm-up of 0 it begins at its peak.
    """
    steps, warmup = max(1, steps), training.warmup
    if training.schedule == "onecycle":
        # OneCycleLR(total_steps=steps + 1): the loop steps a schedule once more after the last update.
        peak = max(0.0, (ONE_CYCLE_WARMUP if warmup is None else warmup) * (steps + 1) - 1)

        def one_cycle(step: int) -> float:
            if step < peak:
                return cosine(ONE_CYCLE_START, 1.0, step / peak)
            return cosine(1.0, ONE_CYCLE_END, (step - peak) / (steps - peak))

        return one_cycle
    warmup_steps = round((warmup or 0.0) * steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            # Above 0 from the first step on, and at the peak with the first step after the warm-up.
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return {"cosine": cosine(1.0, 0.0, done), "linear": 1 - done}.get(training.schedule or "constant", 1.0)

    return factor


def cosine(start: float, end: float, done: float) -> float:
    """The value on half a cosine from `start` (`done` = 0) to `end` (`done` = 1)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def current_rate(scheduler: torch.optim.lr_scheduler.LRScheduler) -> float:
    """The learning rate of the first parameter group, for the step to come."""
    return float(scheduler.get_last_lr()[0])


def has_same_rates(training: Training, epochs: int, done: int, steps_per_epoch: int) -> bool:
    """Whether the first `done` epochs of `training` have the learning rates of a training of `epochs` epochs."""
    assert training.epochs is not None
    own, other = (learning_rate_factor(training, count * steps_per_epoch) for count in (training.epochs, epochs))
    return done <= training.epochs and all(own(step) == other(step) for step in range(done * steps_per_epoch))
