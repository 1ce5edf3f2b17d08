"""Scores of blocks: the arithmetic of blocks, the gradient that reaches a score, the blocks that are kept."""

import pytest
import torch
from torch import nn

from compression.methods.prune.masks import block_scores
from compression.methods.prune.masks.block_scores import BlockGrid, BlockScores
from compression.nn import layers


def scores(values, sizes=None):
    sizes = torch.tensor(sizes or [1] * len(values))
    made = BlockScores(sizes, int(sizes.sum()))
    made.scores.data = torch.tensor(values)
    return made


def test_blocks_spread_over_the_weight_and_are_smaller_at_its_edge():
    grid = BlockGrid.of_layer(nn.Linear(5, 3), height=2, width=3)
    assert grid.blocks == (2, 2)
    assert grid.expand(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [
        [1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2],
        [3, 3, 3, 4, 4],
    ]
    assert grid.sum_blocks(torch.ones(3, 5)).tolist() == [6, 4, 3, 2]


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(3, 5, 3), nn.Conv1d(4, 2, 3)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (32, 32), (1, 100), (100, 1)])
def test_summing_is_the_transpose_of_spreading(layer, height, width):
    grid = BlockGrid.of_layer(layer, height, width)
    values, weights = torch.randn(grid.blocks[0] * grid.blocks[1]), torch.randn(layer.weight.shape)
    assert (grid.expand(values) * weights).sum().item() == pytest.approx(
        (values * grid.sum_blocks(weights)).sum().item(), rel=1e-4
    )


def test_a_score_learns_by_the_gradient_of_the_used_weight_times_the_weight():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    weight = model[0].weight
    [made] = block_scores.attach_scores(model, [[("0", BlockGrid.of_layer(model[0], 1, 1))]])
    made.keep[torch.tensor([1, 3])] = False  # what is pruned learns too
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    answers = model(inputs)
    torch.testing.assert_close(answers, inputs @ (weight * made.keep.view(2, 3)).T)
    (answers * torch.tensor([[1.0, 10.0]])).sum().backward()  # dL/dW' = (1, 10)^T (1, 2, 3)
    used = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    torch.testing.assert_close(made.scores.grad.view(2, 3), used * weight.detach())
    torch.testing.assert_close(weight.grad, used * made.keep.view(2, 3))


def test_a_block_and_layers_that_share_a_score_add_their_gradients_up():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    up, down = (layer.weight.detach().clone() for layer in model)
    parts = [
        ("0", BlockGrid.of_layer(model[0], 1, 2)),
        ("1", BlockGrid.of_layer(model[1], 1, 1)),
    ]  # a neuron: its row, its column
    [made] = block_scores.attach_scores(model, [parts])
    assert made.sizes.tolist() == [3, 3]
    inputs = torch.tensor([[1.0, 2.0]])
    model(inputs).sum().backward()
    hidden = (up @ inputs[0]) * down[0]
    torch.testing.assert_close(made.scores.grad, 2 * hidden)  # the output is linear in both of a neuron's masks


def test_what_moves_towards_zero_gets_a_lower_score_than_what_moves_away():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[5.0, 0.1]])
    [made] = block_scores.attach_scores(model, [[("0", BlockGrid.of_layer(model[0], 1, 1))]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        used = model[0].layer.weight * made().view(1, 2)
        (used - torch.tensor([[0.0, 1.0]])).square().sum().backward()
        optimizer.step()
    block_scores.select_locally([made], 0.5)
    assert made.keep.tolist() == [False, True]  # magnitude would keep the other


def test_the_lowest_are_chosen_to_the_nearest_whole_block():
    ranked, sizes = torch.tensor([0.0, 3.0, 1.0, 2.0]), torch.tensor([4, 4, 1, 2])
    assert block_scores.lowest_blocks(ranked, sizes, 4.4).tolist() == [True, False, False, False]
    assert block_scores.lowest_blocks(ranked, sizes, 4.6).tolist() == [True, False, True, False]
    assert not block_scores.lowest_blocks(ranked, sizes, 0.0).any()
    assert not block_scores.lowest_blocks(ranked, torch.ones(4), -3.0).any()
    assert block_scores.lowest_blocks(torch.zeros(10), torch.ones(10, dtype=torch.long), 3.0).sum() == 3


def test_each_group_loses_its_share_and_whole_blocks_are_made_up_for_in_the_next():
    groups = [scores([1.0, 2.0, 3.0]), scores([1.0, 2.0, 3.0])]
    block_scores.select_locally(groups, 0.5)
    assert [int(s.keep.sum()) for s in groups] in ([1, 2], [2, 1])
    assert block_scores.achieved_sparsity(groups) == 0.5


def test_no_group_is_emptied():
    groups = [scores([1.0]), scores([1.0, 2.0, 3.0, 4.0])]
    block_scores.select_locally(groups, 0.6)
    assert groups[0].keep.tolist() == [True]
    assert block_scores.achieved_sparsity(groups) == pytest.approx(0.6)


def test_all_groups_are_ranked_together_by_the_score_of_a_weight():
    groups = [scores([6.0, 2.0], [4, 4]), scores([1.0, 3.0])]  # 1.5 and 0.5 a weight; 1 and 3
    block_scores.select_globally(groups, 0.5, per_weight=True)
    assert [s.keep.tolist() for s in groups] == [[True, False], [False, True]]
    block_scores.select_globally(groups, 0.5, per_weight=False)
    assert [s.keep.tolist() for s in groups] == [[True, False], [False, True]]
    groups = [scores([6.0, 2.0], [4, 4]), scores([5.0, 3.0])]
    block_scores.select_globally(groups, 0.4, per_weight=False)
    assert [s.keep.tolist() for s in groups] == [[True, False], [True, True]]


def test_what_was_pruned_before_counts_and_stays_so():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    layers.set_mask(model[0], torch.tensor([[False, True, True, True]]))
    made = block_scores.attach_scores(model, [[("0", BlockGrid.of_layer(model[0], 1, 1))]])
    made[0].scores.data = torch.tensor([9.0, 1.0, 2.0, 3.0])
    block_scores.select_locally(made, 0.5)
    assert block_scores.achieved_sparsity(made) == 0.5
    layer = block_scores.detach_scores(model)[0]
    assert type(layer) is nn.Linear
    assert layer.mask.tolist() == [[False, False, True, True]]
