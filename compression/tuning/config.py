"""The configuration of tuning: objectives, constraints, search space, sampler, limits, storage."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping  # noqa: TC003 - params.fields evaluates the types of fields
from dataclasses import dataclass
from typing import Protocol

from compression import params
from compression.errors import UserError
from compression.params import Values, param


class Quality(Protocol):
    """The part of `tasks.Task` that says what its quality is."""

    @property
    def metric(self) -> str:
        """The name of the quality metric."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether it is a task of language models, whose files have metrics of their own."""


SAMPLERS = ("tpe", "nsga2", "nsga3", "random", "grid", "gp")
PRUNERS = ("none", "median", "hyperband")
STORAGE_VARIABLE = "OPTUNA_STORAGE"
ENDS = (-math.inf, math.inf)  # of a constraint that leaves them out


@dataclass(frozen=True)
class TuningConfig(metaclass=params.Flat):
    """The options of `tune`, besides the recipe and the settings of every command."""

    objectives: tuple[str, ...] = param(
        (), "metrics to optimise, separated by commas; the task's metric and size_mb if empty"
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
        for name, text in self.constraints.items():
            _bounds(name, text)


def storage_url() -> str:
    """Return the URL of Optuna's storage. Not a field of the configuration, as it may hold a password."""
    return os.environ.get(STORAGE_VARIABLE, "sqlite:///optuna.db")


@dataclass(frozen=True)
class Constraint:
    """A constraint on a metric: at least `low`, at most `high`."""

    metric: str
    low: float
    high: float

    def excess(self, metrics: Mapping[str, float]) -> float:
        """Return by how much the metric violates the constraint; zero or less if it holds, as Optuna expects.

        Raises UserError if the metric is no number, or missing: a ratio to an original's quality of 0.
        """
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            raise UserError(f"{self.metric} is no number here, so that nothing can be said of the constraint on it.")
        return max(self.low - value, value - self.high)


def objective_directions(config: TuningConfig, task: Quality) -> dict[str, bool]:
    """Return the objectives of `config`: metric -> whether more of it is better.

    They are the task's metric and size_mb if `config` names none. Raises UserError if a metric is unknown or named
    twice, or if the pruner, which sees the task's metric only, is used with another objective.
    """
    names = list(config.objectives) or [task.metric, "size_mb"]
    directions = {name: _is_maximized(name, task) for name in names}
    if len(directions) < len(names):
        raise UserError(f"objectives={','.join(names)} names a metric twice.")
    # Optuna 5 refuses to report epochs in a study of several objectives.
    if config.pruner != "none" and names != [task.metric]:
        raise UserError(
            f"pruner={config.pruner} stops trials by their epochs: it takes objectives={task.metric} alone."
        )
    return directions


def parse_constraints(config: TuningConfig, task: Quality) -> list[Constraint]:
    """Parse the constraints of `config`, each `low..high` with one end or both.

    Raises UserError if one is written otherwise, or names an unknown metric.
    """
    return [_parse_constraint(name, text, task) for name, text in config.constraints.items()]


def _parse_constraint(name: str, text: str, task: Quality) -> Constraint:
    _is_maximized(name, task)  # raises UserError if there is no such metric
    return Constraint(name, *_bounds(name, text))


def _bounds(name: str, text: str) -> tuple[float, float]:
    """Return the ends of a constraint, infinite where one is left out.

    Raises UserError if it is written otherwise, if an end is no finite number, or if no metric or every one lies in it.
    """
    try:
        given = [float(end) for end in split_range(text) if end.strip()]
        low, high = (float(end) if end.strip() else other for end, other in zip(split_range(text), ENDS, strict=True))
    except ValueError:
        given, low, high = [], *ENDS
    if not given or not all(map(math.isfinite, given)) or low > high:
        raise UserError(
            f"The constraint {f'{name}={text}'!r} is written name=low..high, with one end or both: size_mb=..2."
        )
    return low, high


def split_range(text: str) -> tuple[str, str]:
    """Split `low..high` into its ends, each of which may be empty. Raises ValueError if there is no `..`."""
    low, dots, high = text.partition("..")
    if not dots:
        raise ValueError(f"{text!r} is no range")
    return low, high


def _is_maximized(name: str, task: Quality) -> bool:
    """Whether more of the metric `name` is better. Raises UserError if there is no such metric."""
    from compression.deploy import measure  # imports torch, for which `tune --help` should not wait

    higher_is_better = measure.higher_is_better(name, task.metric, task.higher_is_better)
    of_decoders = measure.DECODER_METRICS if task.predicts_tokens else {}
    known = [task.metric, f"{task.metric}_kept", *measure.EFFICIENCY_METRICS, *of_decoders, *measure.COMPARISON_METRICS]
    if higher_is_better is None or name not in known:
        raise UserError(f"There is no metric {name!r}; the metrics are {', '.join(known)}.")
    return higher_is_better
