"""Sparsity schedules: the sparsity to be reached at each moment of a training, a function of its progress in [0, 1]."""

from __future__ import annotations

from compression.errors import UserError


def oneshot(_progress: float, _initial: float, final: float) -> float:
    """All at once, before the first step."""
    return final


def linear(progress: float, initial: float, final: float) -> float:
    """The same amount at every step."""
    return initial + (final - initial) * progress


def cubic(progress: float, initial: float, final: float) -> float:
    """Much while much is redundant, little at the end.  Zhu & Gupta 2017, arXiv:1710.01878, eq. 1."""
    return final + (initial - final) * (1 - progress) ** 3


def geometric(progress: float, initial: float, final: float) -> float:
    """The same share of the remaining weights each time, as lottery tickets are drawn.

    Frankle & Carbin 2019, arXiv:1803.03635, section 1: n rounds that each keep the n-th root of what remains.
    """
    return float(1 - (1 - initial) ** (1 - progress) * (1 - final) ** progress)


RAMPS = ("linear", "agp")  # schedules that rise during a single training
SCHEDULES = {"oneshot": oneshot, "linear": linear, "agp": cubic, "lottery": geometric}


def scheduled_value(
    schedule: str, progress: float, initial: float, final: float, warmup: float = 0.0, cooldown: float = 0.0
) -> float:
    """The value that `schedule`, a name of SCHEDULES, has at `progress`, the share of the steps that are done.

    It stays at `initial` for the share `warmup` of the steps, follows the schedule, and stays at `final` for the last
    share `cooldown` (Sanh et al. 2020, arXiv:2005.07683, section 4 calls these t_i and t_f).
    """
    return SCHEDULES[schedule](ramp(progress, warmup, cooldown), initial, final)


def ramp(progress: float, warmup: float, cooldown: float) -> float:
    """The share of the way from the end of the warm-up (0) to the start of the cool-down (1), clipped to [0, 1]."""
    span = 1 - warmup - cooldown
    if span <= 0:
        return float(progress >= warmup)
    return min(1.0, max(0.0, (progress - warmup) / span))


def require_ramp(start: float, end: float) -> None:
    """Raise UserError unless the options ramp_start and ramp_end are in their order."""
    if start >= end:
        raise UserError(f"ramp_start={start} is not before ramp_end={end}; it must be less.")
