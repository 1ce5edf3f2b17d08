"""The Pareto front of a study and the selected trials, against results worked out by hand."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from compression.errors import UserError
from compression.reporting.pareto import dominates
from compression.tuning.selection import completed_trials, knee_trial, pareto_front, require_completed, select_trials
from compression.tuning.trial import FEASIBLE_ATTR, REFUSED_ATTR

OBJECTIVES = {"accuracy": True, "size_mb": False}


def study_of(*values, feasible=None):
    study = optuna.create_study(directions=["maximize", "minimize"])
    for index, pair in enumerate(values):
        is_feasible = True if feasible is None else feasible[index]
        study.add_trial(create_trial(values=list(pair), user_attrs={FEASIBLE_ATTR: is_feasible}))
    return completed_trials(study)


def test_one_dominates_another_if_it_is_nowhere_worse_and_somewhere_better():
    maximize = [True, False]
    assert dominates([0.9, 1.0], [0.8, 1.0], maximize)
    assert dominates([0.9, 0.9], [0.9, 1.0], maximize)
    assert not dominates([0.9, 1.0], [0.9, 1.0], maximize)
    assert not dominates([0.9, 1.1], [0.8, 1.0], maximize)


def test_the_front_has_the_trials_that_no_other_dominates():
    trials = study_of((0.9, 2.0), (0.8, 1.0), (0.7, 1.5), (0.95, 3.0), (0.8, 1.0))
    assert [t.number for t in pareto_front(trials, OBJECTIVES)] == [1, 0, 3]
    everywhere = study_of((0.9, 2.0), (0.8, 1.0), (0.7, 1.5), (0.95, 3.0), (0.8, 1.0))
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(everywhere)
    assert {tuple(t.values) for t in study.best_trials} == {tuple(t.values) for t in pareto_front(trials, OBJECTIVES)}


def test_a_trial_that_breaks_a_constraint_is_on_no_front():
    trials = study_of((0.9, 2.0), (0.8, 1.0), feasible=[True, False])
    assert [t.number for t in pareto_front(trials, OBJECTIVES)] == [0]
    assert pareto_front(study_of((0.9, 1.0), feasible=[False]), OBJECTIVES) == []


def test_the_best_by_each_objective_and_the_knee_have_aliases():
    trials = pareto_front(study_of((0.5, 1.0), (0.88, 1.2), (0.9, 3.0)), OBJECTIVES)
    assert select_trials(trials, OBJECTIVES) == {2: ["best_accuracy"], 0: ["smallest"], 1: ["knee"]}


def test_one_trial_may_have_every_alias():
    trials = pareto_front(study_of((0.9, 1.0)), OBJECTIVES)
    assert select_trials(trials, OBJECTIVES) == {0: ["best_accuracy", "smallest", "knee"]}


def test_the_knee_is_nearest_to_the_ideal_point():
    # scaled to 0..1: (1, 0), (0.5, 0.25), (0, 1); distances 1, 0.56, 1
    trials = pareto_front(study_of((0.0, 0.0), (0.5, 0.25), (1.0, 1.0)), OBJECTIVES)
    assert knee_trial(trials, OBJECTIVES).values == [0.5, 0.25]


def test_with_a_single_objective_only_the_best_trial_is_selected():
    study = optuna.create_study(direction="minimize")
    for value in (2.0, 1.0, 3.0):
        study.add_trial(create_trial(value=value, user_attrs={FEASIBLE_ATTR: True}))
    front_trials = pareto_front(completed_trials(study), {"latency_ms": False})
    assert [t.value for t in front_trials] == [1.0]
    assert select_trials(front_trials, {"latency_ms": False}) == {1: ["fastest"]}
    assert pytest.approx(front_trials[0].value) == study.best_value


def test_what_became_of_trials_that_have_no_values_is_told():
    study = optuna.create_study()
    with pytest.raises(UserError, match="No trial was begun within timeout=0.5 seconds; give it more"):
        require_completed(study, 0.5)
    study.add_trial(create_trial(state=TrialState.FAIL))
    with pytest.raises(UserError, match=r"No trial came to its end \(1 fail\)"):
        require_completed(study, None)
    study.ask()
    with pytest.raises(UserError, match="No trial has come to its end yet; other workers run 1"):
        require_completed(study, 0.5)
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={REFUSED_ATTR: "bits=1 is too few."}))
    with pytest.raises(UserError, match="No trial came to its end; 1 of 3 refused, the last: bits=1 is too few"):
        require_completed(study, None)
    study.add_trial(create_trial(value=1.0))
    assert len(require_completed(study, None)) == 1
