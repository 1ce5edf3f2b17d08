"""The outcome of a study: its Pareto front, and the trials to test and register."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from compression.errors import UserError
from compression.reporting.pareto import dominates
from compression.tuning.trial import REFUSED_ATTR, is_feasible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study

ALIASES = {"size_mb": "smallest", "latency_ms": "fastest"}  # of the best by an objective; best_<objective> otherwise
KNEE = "knee"


def completed_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that have values: neither pruned nor failed."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def require_completed(study: Study, timeout: float | None) -> list[FrozenTrial]:
    """Return the trials that have values. Raises UserError, with what became of the others, if there are none."""
    if completed := completed_trials(study):
        return completed
    trials = study.get_trials(deepcopy=False)
    if refusals := [t.user_attrs[REFUSED_ATTR] for t in trials if REFUSED_ATTR in t.user_attrs]:
        raise UserError(f"No trial came to its end; {len(refusals)} of {len(trials)} refused, the last: {refusals[-1]}")
    if count := sum(t.state == TrialState.RUNNING for t in trials):
        raise UserError(f"No trial has come to its end yet; other workers run {count}.")
    if trials:
        states = Counter(t.state.name.lower() for t in trials)
        told = ", ".join(f"{number} {state}" for state, number in states.items())
        raise UserError(f"No trial came to its end ({told}); search on with the same study, or without a pruner.")
    raise UserError(f"No trial was begun within timeout={timeout} seconds; give it more.")


def pareto_front(trials: Sequence[FrozenTrial], objectives: Mapping[str, bool]) -> list[FrozenTrial]:
    """Return the feasible trials that no other feasible one dominates, ordered by the first objective.

    `objectives` maps each to whether more of it is better. Of trials with equal values the first is kept.
    """
    maximize = list(objectives.values())
    feasible = [t for t in trials if is_feasible(t)]
    front = [t for t in feasible if not any(dominates(other.values, t.values, maximize) for other in feasible)]
    unique = {tuple(t.values): t for t in reversed(front)}
    return sorted(unique.values(), key=lambda t: t.values[0])


def select_trials(front: Sequence[FrozenTrial], objectives: Mapping[str, bool]) -> dict[int, list[str]]:
    """Select the best trial by each objective and, of several objectives, the knee point.

    Returns trial number -> aliases for the model registry.
    """
    aliases = defaultdict(list)
    for index, (name, maximize) in enumerate(objectives.items()):
        best = (max if maximize else min)(front, key=lambda t: t.values[index])
        aliases[best.number].append(ALIASES.get(name, f"best_{name}"))
    if len(objectives) > 1:
        aliases[knee_trial(front, objectives).number].append(KNEE)
    return dict(aliases)


def knee_trial(front: Sequence[FrozenTrial], objectives: Mapping[str, bool]) -> FrozenTrial:
    """Return the knee point: the trial nearest to the ideal point, which has the best value of every objective.

    Euclidean distance, with each objective scaled to 0..1 over the front.
    """
    signs = [-1.0 if maximize else 1.0 for maximize in objectives.values()]
    costs = np.array([t.values for t in front]) * signs  # (trials, objectives), less is better
    spread = np.ptp(costs, axis=0)
    # An objective in which all of the front are equal has a spread of 0, and says nothing.
    scaled = (costs - costs.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return front[int(np.linalg.norm(scaled, axis=1).argmin())]
