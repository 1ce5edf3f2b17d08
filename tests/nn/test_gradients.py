"""Gradients summed over batches, and the Fisher information, against worked cases."""

import pytest
import torch

from compression.nn.gradients import empirical_fisher, loss_gradients, sum_tensors


def test_gradients_are_summed_and_zero_for_a_weight_without_a_part_in_the_loss():
    w, unused = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    gradients = loss_gradients((w.square().sum() * k for k in (1.0, 2.0)), [w, unused])
    assert [total.tolist() for total in sum_tensors(gradients)] == [[6.0, 12.0], [0.0]]


def test_the_fisher_diagonal_of_a_linear_model_is_the_mean_squared_residual_times_input():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    w = torch.tensor([0.5, 0.5], requires_grad=True)
    residual = x @ w.detach() - torch.tensor([1.0, 0.0])  # (0.5, 1.0)
    losses = ((0.5 * (row @ w - y).square(), 1) for row, y in zip(x, (1.0, 0.0), strict=True))
    [fisher] = empirical_fisher(losses, [w])
    torch.testing.assert_close(fisher, (residual[:, None] * x).square().mean(0))
    assert fisher.tolist() == [pytest.approx((0.25 + 9) / 2), pytest.approx((1 + 1) / 2)]


def test_single_examples_are_differentiated_not_their_mean():
    w = torch.tensor([1.0], requires_grad=True)
    [fisher] = empirical_fisher(((w.sum() * slope, 1) for slope in (1.0, -1.0)), [w])
    assert fisher.item() == 1.0  # the mean's gradient is zero


def test_squares_of_a_batchs_gradient_count_as_often_as_it_has_examples():
    w = torch.tensor([1.0], requires_grad=True)
    [fisher] = empirical_fisher([(2 * w.sum(), 3), (w.sum(), 1)], [w])
    assert fisher.item() == (3 * 4 + 1 * 1) / 2
