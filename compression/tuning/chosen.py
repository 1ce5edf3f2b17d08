"""What comes of a study: its front, the trials that stand out, and what these are worth on the test split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from compression.reporting.pareto import dominates
from compression.tuning.trial import is_feasible

ALIASES = {"size_mb": "smallest", "latency_ms": "fastest"}  # of the best by an objective; best_<objective> else
KNEE = "knee_trial"


def completed_trials(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def pareto_front(trials: Sequence[FrozenTrial], objectives: Mapping[str, bool]) -> list[FrozenTrial]:
    """The feasible trials that no other beats, in the order of the first objective; of equals the first."""
    more = list(objectives.values())
    able = [t for t in trials if is_feasible(t)]
    leading = [t for t in able if not any(dominates(other.values, t.values, more) for other in able)]
    unique = {tuple(t.values): t for t in reversed(leading)}
    return sorted(unique.values(), key=lambda t: t.values[0])


def select_trials(leading: Sequence[FrozenTrial], objectives: Mapping[str, bool]) -> dict[int, list[str]]:
    """Trial number -> its aliases: the best by each objective and, of several objectives, the knee."""
    found = defaultdict(list)
    for index, (name, more) in enumerate(objectives.items()):
        best = (max if more else min)(leading, key=lambda t: t.values[index])
        found[best.number].append(ALIASES.get(name, f"best_{name}"))
    if len(objectives) > 1:
        found[knee_trial(leading, objectives).number].append(KNEE)
    return dict(found)


def knee_trial(leading: Sequence[FrozenTrial], objectives: Mapping[str, bool]) -> FrozenTrial:
    """The trial nearest to the best of every objective at once, each scaled to 0..1 over the front."""
    signs = [-1.0 if more else 1.0 for more in objectives.values()]
    costs = np.array([t.values for t in leading]) * signs
    spread = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return leading[int(np.linalg.norm(scaled, axis=1).argmin())]
