import pytest
import torch

from compression.errors import UserError
from compression.methods.prune.structure.removal import TOLERANCE, Block, closest, merged, ordered, runs


@pytest.mark.parametrize(
    ("count", "round_to", "left"),
    [(4, 1, [3, 2, 1]), (16, 8, [8]), (20, 8, [16, 8]), (8, 8, []), (3, 8, [2, 1]), (1, 1, [])],
)
def test_runs_leave_multiples_and_something(count, round_to, left):
    found = list(runs(range(count), round_to))
    gone = [sum(map(len, found[: i + 1])) for i in range(len(found))]
    assert [count - g for g in gone] == left


def test_every_group_loses_the_same_share_in_turn():
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([9.0, 8.0])}
    assert [block.cut for block in ordered(scores, everywhere=False, round_to=1)] == [
        {"a": [0]},
        {"a": [1]},
        {"b": [1]},
        {"a": [2]},
    ]


def test_everywhere_the_least_score_goes_first():
    scores = {"a": torch.tensor([1.0, 7.0, 3.0]), "b": torch.tensor([2.0, 8.0])}
    order = [block.cut for block in ordered(scores, everywhere=True, round_to=1)]
    assert order == [{"a": [0]}, {"b": [0]}, {"a": [2]}]


def share(cut):
    """Heads take an eighth each, neurons a hundredth."""
    return len(cut.get("heads", [])) / 8 + len(cut.get("ffn", [])) / 100


def blocks():
    heads = [Block({"heads": [i]}, (i + 1) / 4) for i in range(3)]
    neurons = [Block({"ffn": [i]}, (i + 1) / 50) for i in range(49)]
    return sorted(heads + neurons, key=lambda block: block.place)


@pytest.mark.parametrize("wanted", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.85])
def test_the_target_is_met_where_fine_blocks_can_fill_what_coarse_ones_leave(wanted):
    assert share(closest(blocks(), share, wanted, "macs")) == pytest.approx(wanted, abs=TOLERANCE)


def test_a_gap_is_not_filled_by_one_place_alone_where_trades_fill_it():
    sizes = {"a": 0.1, "b": 0.06, "c": 0.008}  # of one block; c has enough of them to fill any gap
    order = [Block({where: [i]}, (i + 1) / 8) for i in range(7) for where in sizes]

    def taken(cut):
        return sum(sizes[where] * len(gone) for where, gone in cut.items())

    cut = closest(order, taken, 0.21, "macs")
    assert taken(cut) == pytest.approx(0.21, abs=TOLERANCE)
    assert max(map(len, cut.values())) <= 3  # without trades six of c


def test_the_nearest_is_taken_where_no_cut_meets_the_target():
    heads = [block for block in blocks() if "heads" in block.cut]
    assert share(closest(heads, share, 0.15, "macs")) == 0.125
    assert share(closest(heads, share, 0.2, "macs")) == 0.25


def test_more_than_there_is_to_take_is_refused():
    with pytest.raises(UserError, match=r"sparsity=0.99 of the macs cannot go: .* 0.865 are gone; ask for less"):
        closest(blocks(), share, 0.99, "macs")


def test_a_cut_adds_up():
    assert merged([Block({"a": [1]}, 0), Block({"b": [2], "a": [3]}, 1)]) == {"a": [1, 3], "b": [2]}
