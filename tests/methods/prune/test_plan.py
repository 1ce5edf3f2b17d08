import pytest
import torch

from compression.methods.prune.structure.plan import (
    TOLERANCE,
    PruningUnit,
    find_plan,
    merge_plans,
    rank_units,
    split_into_runs,
)


@pytest.mark.parametrize(
    ("count", "round_to", "left"),
    [(4, 1, [3, 2, 1]), (16, 8, [8]), (20, 8, [16, 8]), (8, 8, []), (3, 8, [2, 1]), (1, 1, [])],
)
def test_runs_leave_multiples_and_something(count, round_to, left):
    found = list(split_into_runs(range(count), round_to))
    gone = [sum(map(len, found[: i + 1])) for i in range(len(found))]
    assert [count - g for g in gone] == left


def test_every_group_loses_the_share_nearest_to_the_same_in_turn():
    """By hand: the middles of the shares before and after are 1/8, 3/8 and 5/8 of a, and 1/4 of b."""
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([9.0, 8.0])}
    assert [unit.plan for unit in rank_units(scores, is_global=False, round_to=1)] == [
        {"a": [0]},
        {"b": [1]},
        {"a": [1]},
        {"a": [2]},
    ]


def test_groups_of_few_channels_go_when_the_others_have_lost_half_of_what_these_lose_at_once():
    scores = {"wide": torch.arange(1.0, 65.0), "narrow": torch.arange(1.0, 17.0)}
    units = rank_units(scores, is_global=False, round_to=8)
    place = next(i for i, unit in enumerate(units) if "narrow" in unit.plan)
    assert place == 2  # 16 of 64 are gone by then, a quarter, and 8 of 16 go


def test_of_equal_shares_those_that_mean_least_beside_their_own_go_first():
    scores = {"even": torch.tensor([4.0, 4.0]), "uneven": torch.tensor([5.0, 50.0]), "tiny": torch.tensor([0.4, 0.5])}
    assert [[*unit.plan] for unit in rank_units(scores, is_global=False, round_to=1)] == [
        ["uneven"],
        ["tiny"],
        ["even"],
    ]


def test_globally_the_least_score_goes_first():
    scores = {"a": torch.tensor([1.0, 7.0, 3.0]), "b": torch.tensor([2.0, 8.0])}
    order = [unit.plan for unit in rank_units(scores, is_global=True, round_to=1)]
    assert order == [{"a": [0]}, {"b": [0]}, {"a": [2]}]


def removed_share(plan):
    """Heads take an eighth each, neurons a hundredth."""
    return len(plan.get("heads", [])) / 8 + len(plan.get("ffn", [])) / 100


def units():
    heads = [PruningUnit({"heads": [i]}, (i + 1) / 4) for i in range(3)]
    neurons = [PruningUnit({"ffn": [i]}, (i + 1) / 50) for i in range(49)]
    return sorted(heads + neurons, key=lambda unit: unit.rank)


@pytest.mark.parametrize("target", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.85])
def test_the_target_is_met_where_fine_blocks_can_fill_what_coarse_ones_leave(target):
    assert removed_share(find_plan(units(), removed_share, target)) == pytest.approx(target, abs=TOLERANCE)


def test_a_gap_is_not_filled_at_one_location_alone_where_swaps_fill_it():
    sizes = {"a": 0.1, "b": 0.06, "c": 0.008}  # of one block; c has enough of them to fill any gap
    order = [PruningUnit({where: [i]}, (i + 1) / 8) for i in range(7) for where in sizes]

    def removed(plan):
        return sum(sizes[where] * len(gone) for where, gone in plan.items())

    plan = find_plan(order, removed, 0.21)
    assert removed(plan) == pytest.approx(0.21, abs=TOLERANCE)
    assert max(map(len, plan.values())) <= 3  # without swaps six of c


def test_the_nearest_is_taken_where_no_plan_meets_the_target():
    heads = [unit for unit in units() if "heads" in unit.plan]
    assert removed_share(find_plan(heads, removed_share, 0.15)) == 0.125
    assert removed_share(find_plan(heads, removed_share, 0.2)) == 0.25


def test_plans_are_merged():
    assert merge_plans([PruningUnit({"a": [1]}, 0), PruningUnit({"b": [2], "a": [3]}, 1)]) == {"a": [1, 3], "b": [2]}
