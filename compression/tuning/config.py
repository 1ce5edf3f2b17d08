"""The configuration of tuning: objectives, constraints, search space, sampler, limits, storage."""

from __future__ import annotations

import os
from collections.abc import Mapping  # noqa: TC003  # params.fields evaluates the types of fields
from dataclasses import dataclass

from compression import params
from compression.errors import UserError
from compression.params import Values, param

SAMPLERS = ("tpe", "nsga2", "nsga3", "random", "grid", "gp")
PRUNERS = ("none", "median", "hyperband")
STORAGE_VARIABLE = "OPTUNA_STORAGE"


@dataclass(frozen=True)
class TuningConfig(metaclass=params.Flat):
    """The options of `tune`, besides the recipe and the settings of every command."""

    objectives: tuple[str, ...] = param(
        (), "figures to optimise, separated by commas; the task's metric and size_mb if empty"
    )
    trials: int = param(40, "trials of the study, over all its workers", interval="[1, inf)")
    space: Mapping[str, Values] = param(
        {}, "ranges in place of the fields' own: structured.sparsity=0.2..0.8,static.bits=4/8; finetune_2 is the second"
    )
    constraints: Mapping[str, str] = param(
        {}, "bounds that a chosen trial must keep to: accuracy_kept=0.98..,size_mb=..2"
    )
    sampler: str = param("tpe", "how the values of the next trial are chosen", choices=SAMPLERS)
    pruner: str = param(
        "none", "rule that stops bad trials early, by the metric of their epochs; takes one objective", choices=PRUNERS
    )
    timeout: float | None = param(None, "seconds after which this worker begins no more trials", interval="(0, inf)")
    study: str = param("", "name of the study, for workers to share and to continue later; made up if empty")
    heartbeat: int = param(
        30, "seconds between a worker's signs of life; it counts as dead after three without", interval="[1, inf)"
    )

    def __post_init__(self) -> None:
        params.check(self)


def storage_url() -> str:
    """Return the URL of Optuna's storage. Not a field of the configuration, as it may hold a password."""
    return os.environ.get(STORAGE_VARIABLE, "sqlite:///optuna.db")


@dataclass(frozen=True)
class Constraint:
    """A constraint on a figure: at least `low`, at most `high`."""

    figure: str
    low: float
    high: float

    def excess(self, figures: Mapping[str, float]) -> float:
        """Return by how much the figure violates the constraint; zero or less if it holds, as Optuna expects."""
        value = figures[self.figure]
        return max(self.low - value, value - self.high)


def objectives(plan: TuningConfig, metric: str) -> dict[str, bool]:
    """The figures to optimise, and whether more of each is better."""
    names = list(plan.objectives) or [metric, "size_mb"]
    found = {name: _direction(name, metric) for name in names}
    if len(found) < len(names):
        raise UserError(f"objectives={','.join(names)} names a figure twice.")
    if plan.pruner != "none" and list(found) != [metric]:
        raise UserError(f"pruner={plan.pruner} stops trials by their epochs: it takes objectives={metric} alone.")
    return found


def bounds(plan: TuningConfig, metric: str) -> list[Constraint]:
    """The constraints."""
    return [_bound(name, text, metric) for name, text in plan.constraints.items()]


def _bound(name: str, text: str, metric: str) -> Constraint:
    """The bound that `text`, low..high, puts on the figure `name`."""
    low, dots, high = text.partition("..")
    try:
        ends = float(low or "-inf"), float(high or "inf")
    except ValueError:
        ends = (1.0, 0.0)
    if not dots or ends[0] > ends[1] or ends == (float("-inf"), float("inf")):
        raise UserError(
            f"The constraint {f'{name}={text}'!r} is written name=low..high, with one end or both: size_mb=..2."
        )
    _direction(name, metric)
    return Constraint(name, *ends)


def _direction(name: str, metric: str) -> bool:
    """Return whether more of the figure `name` is better. Raises UserError if there is no such figure."""
    from compression.deploy import measure  # imports torch, for which `tune --help` should not wait

    more = measure.better(name, metric)
    if more is None:
        known = [metric, f"{metric}_kept", *measure.FIGURES, *measure.RATIOS]
        raise UserError(f"There is no figure {name!r}; the figures are {', '.join(known)}.")
    return more
