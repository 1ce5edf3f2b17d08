"""How much is to be pruned by when: pure functions of how far a training has come."""

from __future__ import annotations


def oneshot(done: float, initial: float, final: float) -> float:
    """All at once, before the first step."""
    return final


def linear(done: float, initial: float, final: float) -> float:
    """The same amount at every step."""
    return initial + (final - initial) * done


def cubic(done: float, initial: float, final: float) -> float:
    """Much while much is redundant, little at the end.  Zhu & Gupta 2017, arXiv:1710.01878, eq. 1."""
    return final + (initial - final) * (1 - done) ** 3


def geometric(done: float, initial: float, final: float) -> float:
    """The same share of what is left each time, as lottery tickets are drawn.

    Frankle & Carbin 2019, arXiv:1803.03635, section 1: n rounds that each keep the n-th root of what remains.
    """
    return 1 - (1 - initial) ** (1 - done) * (1 - final) ** done


RISING = ("linear", "agp")  # those that a training with learned scores or gates can follow
SCHEDULES = {"oneshot": oneshot, "linear": linear, "agp": cubic, "lottery": geometric}


def target(
    schedule: str, progress: float, initial: float, final: float, warmup: float = 0.0, cooldown: float = 0.0
) -> float:
    """What `schedule` wants at `progress`, the share of the steps that are done, in [0, 1].

    It stays at `initial` for the share `warmup` of the steps, moves by one of SCHEDULES, and stays at `final` for
    the last share `cooldown` (Sanh et al. 2020, arXiv:2005.07683, section 4 calls these t_i and t_f).
    """
    return SCHEDULES[schedule](ramp(progress, warmup, cooldown), initial, final)


def ramp(progress: float, warmup: float, cooldown: float) -> float:
    """How far between the end of the warm-up (0) and the start of the cool-down (1), clipped to both."""
    span = 1 - warmup - cooldown
    if span <= 0:
        return float(progress >= warmup)
    return min(1.0, max(0.0, (progress - warmup) / span))
