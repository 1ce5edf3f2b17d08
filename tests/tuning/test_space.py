"""The search space: the fields that a recipe leaves out, over their default or narrower ranges."""

import optuna
import pytest

from compression import methods, params
from compression.errors import UserError
from compression.tuning.config import TuningConfig
from compression.tuning.space import GRID_POINTS, build_space


def ranges_of(text):
    """The space as the command line reads it."""
    return params.fields(TuningConfig)["space"].parse(text)


def test_given_fields_are_fixed_and_fields_left_out_are_searched():
    found = build_space("response:temperature=3,learning_rate=0.1", ranges_of(""))
    assert set(found.ranges) == {"response.alpha"}
    [step] = found.steps
    assert (step.temperature, step.training.learning_rate) == (3.0, 0.1)


def test_the_ranges_are_those_that_the_fields_declare():
    found = build_space("static", ranges_of(""))
    declared = params.fields(methods.method("static"))
    assert set(found.ranges) == {f"static.{name}" for name, field in declared.items() if field.param.search}
    assert (found.ranges["static.bits"].low, found.ranges["static.bits"].high) == declared["bits"].param.search
    assert found.ranges["static.observer"].choices == declared["observer"].param.search


def test_the_space_narrows_and_adds():
    narrowed = ranges_of("static.bits=4/8,static.calibration_samples=64..128")
    found = build_space("magnitude:sparsity=0.5+static", narrowed).ranges
    assert found["static.bits"].choices == (4, 8)
    assert (found["static.calibration_samples"].low, found["static.calibration_samples"].high) == (64, 128)


def test_the_ranges_of_a_method_that_occurs_twice_are_narrowed_separately():
    found = build_space("finetune:learning_rate=0.1+structured+finetune", ranges_of("finetune_2.epochs=1/2")).ranges
    assert found["finetune_2.epochs"].choices == (1, 2)
    assert "finetune.epochs" not in found
    assert "finetune_2.learning_rate" in found


@pytest.mark.parametrize(
    ("recipe", "narrowed", "trains"),
    [
        ("magnitude", "", False),
        ("magnitude:sparsity_schedule=agp", "", True),
        ("magnitude", "magnitude.sparsity_schedule=oneshot/agp", True),
        ("structured", "", False),
        ("structured:criterion=group", "", True),
        ("structured", "structured.criterion=l1/bn_scale", True),
    ],
)
def test_the_recipe_of_a_pruner_is_searched_where_it_trains(recipe, narrowed, trains):
    found = build_space(recipe, ranges_of(narrowed)).ranges
    name = recipe.partition(":")[0]
    assert f"{name}.sparsity" in found
    assert (f"{name}.learning_rate" in found) is trains
    assert f"{name}.penalty" not in found or trains


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        ("svd", "target"),
        ("svd:rank=energy", "ratio"),
        ("wanda:pattern=2:4", "sparsity"),
        ("movement", "score_learning_rate"),
        ("self_distill:style=born_again", "sure"),
        ("response:alpha=0", "temperature"),
    ],
)
def test_a_field_without_effect_is_not_searched(recipe, field):
    label = recipe.partition(":")[0]
    assert f"{label}.{field}" not in build_space(f"{recipe}+finetune", ranges_of("")).ranges


@pytest.mark.parametrize(
    ("recipe", "narrowed"),
    [("progressive:assistants=0.5", ""), ("multi_teacher", "multi_teacher.weighting=mean/weighted")],
)
def test_invalid_combinations_of_texts_are_left_to_their_trials(recipe, narrowed):
    assert build_space(recipe, ranges_of(narrowed)).ranges


def test_a_field_without_effect_is_searched_if_requested():
    assert "magnitude.learning_rate" in build_space("magnitude", ranges_of("magnitude.learning_rate=0.1/0.2")).ranges


@pytest.mark.parametrize(
    ("recipe", "narrowed", "said"),
    [
        ("static", "statik.bits=4", "the steps are static"),
        ("static", "static.bits", "a name with low..high or x/y for each"),
        ("static", "static.bit=4", "static has no field 'bit'"),
        ("static:bits=4", "static.bits=4/8", "fixed in the recipe"),
        ("static", "static.bits=4/99", "out of range"),
        ("static", "static.bits=8..4", "ends before it begins"),
        ("static", "static.observer=mse..minmax", "is no number and has no range"),
        ("static", "static.bits=four", "not a whole number"),
        ("statik", "", "no method 'statik'"),
        ("finetune:learning_rate=0.1", "", "leaves nothing to search"),
    ],
)
def test_an_invalid_space_is_refused(recipe, narrowed, said):
    with pytest.raises(UserError, match=said):
        build_space(recipe, ranges_of(narrowed))


def test_every_suggestion_lies_in_the_range_and_fills_the_step():
    found = build_space("response:learning_rate=0.1+static", ranges_of("static.bits=2..4"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        first, second = found.suggest_steps(study.ask())
        assert 1 <= first.temperature <= 16
        assert 0 <= first.alpha <= 1
        assert second.bits in (2, 3, 4)
        methods.parse(methods.text([first, second]))


def test_a_grid_takes_every_whole_number_every_choice_and_a_few_floats():
    found = build_space("response:learning_rate=0.1", ranges_of("response.epochs=1..3")).grid_values()
    assert found["response.epochs"] == [1, 2, 3]
    assert len(found["response.alpha"]) == GRID_POINTS
    assert found["response.temperature"][0] == 1.0
    assert found["response.temperature"][-1] == pytest.approx(16.0)
    assert found["response.temperature"][2] == pytest.approx(4.0)  # the middle on a log scale


def test_trials_share_only_first_steps_with_discrete_fields():
    found = build_space("structured:sparsity=0.5,learning_rate=0.1,criterion=l1,penalty=0.1+response", ranges_of(""))
    assert found.can_share(1)
    assert not found.can_share(2)
