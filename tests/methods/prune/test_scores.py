import math

import pytest
import torch
from torch import nn

from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.masks.example_loss import example_batches, mean_loss
from compression.methods.prune.masks.scores import keep_largest, mask_smallest, prune_counts
from compression.nn import layers


def test_the_largest_scores_over_all_layers_stay():
    keep = keep_largest({"a": torch.tensor([[5.0, 1.0]]), "b": torch.tensor([4.0, 3.0, 2.0, 0.0])}, 0.5)
    assert keep["a"].tolist() == [[True, False]]
    assert keep["b"].tolist() == [True, True, False, False]


def test_equal_scores_do_not_change_the_count():
    assert keep_largest({"a": torch.zeros(10)}, 0.3)["a"].sum() == 7


def test_what_is_pruned_already_goes_first_and_stays_pruned():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.fill_(1.0)
    layers.set_mask(model[0], torch.tensor([[False, True], [True, True]]))
    mask_smallest(model, {"0": torch.tensor([[9.0, 1.0], [2.0, 3.0]])}, 0.5)
    assert model[0].mask.tolist() == [[False, False], [True, True]]
    mask_smallest(model, {"0": torch.ones(2, 2)}, 0.0)
    assert model[0].mask.tolist() == [[False, False], [True, True]]


def test_batches_hold_every_chosen_example_once_and_are_even(task, make_context):
    context = make_context(task, nn.Linear(1, 1))
    sizes = [len(targets) for _, targets in example_batches(context, 130, size=128)]
    assert sizes == [65, 65]
    assert sum(len(t) for _, t in example_batches(context, 10_000)) == len(task.train)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_starting_over_is_refused_after_another_step(name, task, make_context):
    context = make_context(task, nn.Linear(1, 1), model_changed=True)
    with pytest.raises(UserError, match="must be the first step"):
        method(name)(untrained=True).apply(nn.Linear(1, 1), context)


def test_logits_are_softened_for_classes_alone(task, make_context):
    context = make_context(task, nn.Linear(1, 1))
    logits, targets = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
    softened = mean_loss(nn.Identity(), logits, targets, context, temperature=4.0)
    assert softened.item() == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_counts_add_up_to_the_share_of_the_whole():
    assert list(prune_counts([9, 9, 9, 9], 0.5)) == [4, 5, 5, 4]
    assert sum(prune_counts([7] * 100, 0.3)) == 210
