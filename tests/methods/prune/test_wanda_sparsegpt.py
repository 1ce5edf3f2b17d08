"""Wanda's importance and SparseGPT's updates, against worked cases and exact optimal brain surgery."""

import pytest
import torch

from compression.errors import UserError
from compression.methods import method
from compression.methods.blockwise.moments import inverse_factor
from compression.methods.prune import sparsegpt, wanda
from compression.methods.prune.masks.layerwise import smallest_per_row

INPUTS = torch.tensor([[3.0, 1.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.double)


def test_importance_is_the_weight_times_the_norm_of_its_input():
    weight = torch.tensor([[1.0, -6.0, 9.0], [2.0, 0.0, -1.0]])
    norms = method("wanda")().input_moment(INPUTS[None].float())[0].sqrt()
    assert norms.tolist() == [5.0, 1.0, 0.0]
    assert wanda.wanda_scores(weight, norms).tolist() == [[5.0, 6.0, 0.0], [10.0, 0.0, 0.0]]


def test_wanda_compares_within_an_output_and_leaves_what_stays_as_it_is():
    weight = torch.tensor([[1.0, -6.0], [200.0, 100.0]])
    new, keep = method("wanda")(sparsity=0.5).prune_matrix(weight, torch.tensor([25.0, 1.0]), torch.ones(2, 2).bool())
    assert keep.tolist() == [[False, True], [True, False]]
    assert torch.equal(new, weight)


def exact(weight, hessian, gone):
    """Optimal brain surgery, Hassibi & Stork 1993, eq. 5: the best weights with `gone` at zero."""
    inverse = torch.linalg.inv(hessian)
    return weight - weight[gone] / inverse[gone, gone] * inverse[:, gone]


def test_two_weights_are_pruned_as_optimal_brain_surgery_does():
    hessian = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.double)
    weight = torch.tensor([1.0, 2.0], dtype=torch.double)
    # [H^-1] = (3, -1; -1, 2) / 5: saliencies w^2 / [H^-1]_jj are 1 / 0.6 and 4 / 0.4; the first goes and the second
    # takes 1 / 0.6 * 0.2 = 1/3 on itself
    found, keep = sparsegpt.prune_and_update(weight[None], hessian, torch.ones(1, 2).bool(), 0.5, dampening=0.0)
    assert keep.tolist() == [[False, True]]
    torch.testing.assert_close(found[0], exact(weight, hessian, 0))
    assert found[0].tolist() == pytest.approx([0.0, 2 + 1 / 3])


def test_one_column_of_many_outputs_is_pruned_as_optimal_brain_surgery_does():
    torch.manual_seed(0)
    inputs, weight = torch.randn(50, 5).double(), torch.randn(4, 5).double()
    hessian = inputs.T @ inputs
    keep = torch.ones(4, 5).bool()
    keep[:, 0] = False
    found = weight.clone()
    sparsegpt.eliminate(found, keep, inverse_factor(hessian, 0.0))
    for row in range(4):
        torch.testing.assert_close(found[row], exact(weight[row], hessian, 0))


def test_the_factor_gives_the_inverse_of_what_is_left_after_each_column():
    torch.manual_seed(0)
    inputs = torch.randn(20, 4).double()
    hessian = inputs.T @ inputs
    factor = inverse_factor(hessian, 0.0)
    for j in range(4):
        left = torch.linalg.inv(hessian[j:, j:])[0]
        torch.testing.assert_close(factor[j, j:] * factor[j, j], left)


@pytest.mark.parametrize("block", [1, 4, 7, 128])
def test_the_weights_that_stay_make_up_for_those_that_go(block):
    torch.manual_seed(0)
    inputs = torch.randn(200, 6) @ torch.randn(6, 24) + 0.5 * torch.randn(200, 24)  # correlated, as activations are
    inputs = inputs.double()
    weight, allowed = torch.randn(8, 24).double(), torch.ones(8, 24).bool()
    found, keep = sparsegpt.prune_and_update(weight, inputs.T @ inputs, allowed, 0.5, dampening=1e-6, block=block)
    magnitude = weight * ~smallest_per_row(weight.abs(), [12] * 8)
    sparsegpt_error, magnitude_error = ((inputs @ (w - weight).T).square().sum().item() for w in (found, magnitude))
    assert (found[~keep] == 0).all()
    assert keep.sum() == weight.numel() / 2
    assert sparsegpt_error < 0.5 * magnitude_error


def correlated(seed, columns=32):
    torch.manual_seed(seed)
    return (torch.randn(300, 8) @ torch.randn(8, columns) + 0.5 * torch.randn(300, columns)).double()


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_of_n_of_m_each_m_are_chosen_when_those_before_them_are_corrected(pattern):
    """Column by column, as algorithm 1 is written, with the inverse of what is left computed anew."""
    n, m = pattern
    inputs, weight = correlated(0), torch.randn(6, 32).double()
    hessian = inputs.T @ inputs
    left, keep = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for j in range(32):
        if j % m == 0:
            diagonals = torch.stack([torch.linalg.inv(hessian[i:, i:])[0, 0] for i in range(j, j + m)])
            ranks = (left[:, j : j + m].square() / diagonals).argsort(1).argsort(1)
            keep[:, j : j + m] = ranks >= m - n
        inverse = torch.linalg.inv(hessian[j:, j:])
        error = left[:, j] * ~keep[:, j] / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0]
    for block in (1, 8, 12, 128):
        found, kept = sparsegpt.prune_and_update(
            weight, hessian, torch.ones_like(keep), 1 - n / m, pattern, dampening=0.0, block=block
        )
        assert torch.equal(kept, keep)
        torch.testing.assert_close(found, left * keep)


def test_inputs_that_are_always_zero_go_first():
    inputs = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 1.0, 0.0]]).double()
    found, keep = sparsegpt.prune_and_update(torch.ones(1, 4), inputs.T @ inputs, torch.ones(1, 4).bool(), 0.5)
    assert keep.tolist() == [[True, False, True, False]]
    assert found.isfinite().all()


def test_a_layer_without_any_activation_is_still_pruned():
    found, keep = sparsegpt.prune_and_update(torch.ones(2, 4), torch.zeros(4, 4).double(), torch.ones(2, 4).bool(), 0.5)
    assert keep.sum() == 4
    assert found.isfinite().all()


def test_inputs_that_are_all_alike_take_more_dampening_and_no_numbers_are_refused():
    moment = torch.full((64, 64), 1e6).double() - 1e-3 * torch.eye(64).double()  # not positive definite, by rounding
    found, keep = sparsegpt.prune_and_update(torch.randn(2, 64), moment, torch.ones(2, 64).bool(), 0.5, dampening=0.0)
    assert found.isfinite().all()
    assert keep.sum() == 64
    with pytest.raises(UserError, match="a layer of 64 inputs is given is not finite"):
        sparsegpt.prune_and_update(torch.randn(2, 64), moment * torch.inf, torch.ones(2, 64).bool(), 0.5)
