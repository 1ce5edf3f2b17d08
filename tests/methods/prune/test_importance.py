"""Scores against torch-pruning's own where it has them right, else against the formula."""

import dataclasses

import pytest
import torch
import torch_pruning as tp
from torch import nn

from compression import models
from compression.methods.prune.structure import importance as importance_module
from compression.methods.prune.structure.importance import (
    GroupMember,
    Importance,
    gradient_statistics,
    importance,
    normalise_scores,
)
from compression.methods.prune.structure.sparsity_penalty import bn_penalty, channel_weights, group_penalty
from compression.nn.inputs import forward
from tests.conftest import stripes_task

PEERS = {
    "l1": tp.importance.MagnitudeImportance(p=1),
    "l2": tp.importance.MagnitudeImportance(p=2),
    "lamp": tp.importance.LAMPImportance(),
    "bn_scale": tp.importance.BNScaleImportance(),
}


def groups(name):
    torch.manual_seed(0)
    model = models.build(name, stripes_task()).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=torch.randn(2, 1, 8, 8))
    return model, list(graph.get_all_groups(ignored_layers=[model.fc]))


def scored(criterion, group, gradients=None):
    return Importance(criterion, gradients or {}, torch.Generator())(group)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
@pytest.mark.parametrize("criterion", PEERS)
def test_scores_are_torch_prunings(criterion, name):
    for group in groups(name)[1]:
        torch.testing.assert_close(scored(criterion, group), PEERS[criterion](group), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
def test_fpgm_is_torch_prunings_where_no_weight_is_negative(name):
    # elsewhere torch-pruning measures distances between |w|, not w
    model, found = groups(name)
    for parameter in model.parameters():
        parameter.data.abs_()
    for group in found:
        torch.testing.assert_close(
            scored("fpgm", group), tp.importance.FPGMImportance(p=1)(group), rtol=1e-4, atol=1e-5
        )


def test_taylor_is_torch_prunings(task, make_context):
    model, found = groups("resnet8")
    inputs, targets = next(task.train.batches(len(task.train)))
    task.loss(forward(model, inputs), targets).backward()
    gradients = gradient_statistics(model, "mean", len(task.train), make_context(task, model))
    for group in found:
        expected = tp.importance.TaylorImportance()(group)
        torch.testing.assert_close(scored("taylor", group, gradients), expected, rtol=1e-3, atol=1e-5)


def rows(criterion, weight, gradients=None):
    """The formula on rows, before it is averaged and normalised."""
    return (
        importance_module.CRITERIA[criterion].formula(torch.tensor(weight), torch.tensor(gradients or weight)).tolist()
    )


def test_the_formulas_by_hand():
    weight, gradients = [[1.0, -2.0], [0.0, 3.0]], [[2.0, 1.0], [5.0, 0.0]]
    assert rows("l1", weight) == [3.0, 3.0]
    assert rows("l2", weight) == [5.0, 9.0]
    assert rows("taylor", weight, gradients) == [4.0, 0.0]
    assert rows("hessian", weight, gradients) == [(2.0 + 4.0) / 2, 0.0]
    assert rows("fpgm", [[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]) == [15.0, 10.0, 15.0]


def test_lamp_divides_each_score_by_those_that_are_no_smaller():
    # 1 / (1+2+5), 5 / 5, 2 / (2+5)
    assert normalise_scores(torch.tensor([1.0, 5.0, 2.0]), "lamp").tolist() == pytest.approx([1 / 8, 1.0, 2 / 7])


def test_other_scores_have_the_mean_one():
    assert normalise_scores(torch.tensor([1.0, 5.0, 3.0]), "l1").mean().item() == pytest.approx(1.0)


def test_the_curvature_is_the_mean_square_of_every_examples_gradient(task, make_context):
    # torch-pruning's accumulate_grad keeps the last example's only
    model = models.build("digits_cnn", task).eval()
    found = gradient_statistics(model, "squared", 5, make_context(task, model))
    from compression.methods.prune.masks.example_loss import example_batches

    squares = []
    for inputs, targets in example_batches(make_context(task, model), 5, size=1):
        model.zero_grad()
        task.loss(forward(model, inputs), targets).backward()
        squares.append(model.fc.weight.grad.square())
    torch.testing.assert_close(found[model.fc], torch.stack(squares).mean(0), rtol=1e-4, atol=1e-9)


def test_a_flattened_channel_is_scored_by_all_its_pixels():
    model = models.build("cnn5", stripes_task(input_shape=(1, 32, 32)))  # 4x4 pixels reach the linear layer
    graph = tp.DependencyGraph().build_dependency(model.eval(), example_inputs=torch.randn(2, 1, 32, 32))
    conv, linear = model.stages[-1].conv, model.hidden.fc
    group = graph.get_pruning_group(conv, tp.prune_conv_out_channels, list(range(conv.out_channels)))
    part = next(m for m in importance_module.group_members(group) if m.module is linear)
    pixels = linear.in_features // conv.out_channels
    assert pixels > 1
    expected = linear.weight.detach().abs().view(linear.out_features, conv.out_channels, pixels).sum((0, 2))
    sums = part.slices(linear.weight.detach()).abs().sum(1)
    torch.testing.assert_close(torch.zeros(conv.out_channels).index_add_(0, part.channel, sums), expected)


def test_random_scores_follow_the_seed(task, make_context):
    model, [group, *_] = groups("digits_cnn")
    context = make_context(task, model)
    first, again = (importance(model, "random", 1, context)(group) for _ in range(2))
    context = dataclasses.replace(context, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, importance(model, "random", 1, context)(group))


def test_rows_are_slices_along_their_axis():
    layer = nn.Linear(3, 2)
    taken = GroupMember(layer, 1, torch.tensor([2, 0]), torch.tensor([0, 1]), is_norm=False).slices(layer.weight)
    assert torch.equal(taken, layer.weight[:, [2, 0]].T)


def test_the_group_penalty_has_the_gradient_of_torch_prunings_regularizer():
    model, found = groups("resnet8")
    example = torch.randn(2, 1, 8, 8)
    peer = tp.pruner.GroupNormPruner(
        model, example, tp.importance.GroupMagnitudeImportance(p=2), reg=0.3, ignored_layers=[model.fc]
    )
    (0.3 * group_penalty(found)()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peer.regularize(model)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad.abs().sum() > 0}
    assert gradients.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-3, atol=1e-5)


def test_the_smallest_channel_has_sixteen_times_the_penalty_weight_of_the_largest():
    assert channel_weights(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([16.0, 4.0, 1.0])
    assert channel_weights(torch.tensor([2.0, 2.0])).isfinite().all()


def test_the_slimming_penalty_is_the_sum_of_absolute_scales():
    model = models.build("digits_cnn", stripes_task())
    model.stages[0].bn.weight.data.fill_(-0.5)
    others = [m.num_features for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][1:]
    expected = model.stages[0].bn.num_features * 0.5 + sum(others)
    assert bn_penalty(model)().item() == pytest.approx(expected)
