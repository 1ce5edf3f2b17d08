"""Second moments and the factors of their inverses."""

import pytest
import torch

from compression.errors import UserError
from compression.methods.blockwise.moments import inverse_factor, mended_inverse_factor, second_moment


def test_the_moment_of_batches_is_that_of_all_rows():
    rows = torch.randn(50, 6)
    torch.testing.assert_close(second_moment(rows.split(20)), (rows.double().T @ rows.double()), rtol=1e-5, atol=1e-5)


def test_the_factor_is_that_of_the_damped_inverse():
    rows = torch.randn(50, 6).double()
    moment = rows.T @ rows
    damped = moment + 0.1 * moment.diagonal().mean() * torch.eye(6)
    factor = inverse_factor(moment, 0.1)
    torch.testing.assert_close(factor.T @ factor, damped.inverse())
    assert torch.equal(factor, factor.triu())


def test_a_matrix_that_is_not_definite_is_damped_more_and_that_is_said():
    rounded = torch.diag(torch.tensor([1.0, 1.0, -1e-3]))  # as rounding leaves the moment of dependent inputs
    _, dampening = mended_inverse_factor(rounded, 1e-6, "fc")
    assert dampening == pytest.approx(1e-2)
    assert mended_inverse_factor(torch.eye(3), 0.01, "fc")[1] == 0.01


def test_inputs_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="What fc is given is not finite"):
        mended_inverse_factor(torch.full((2, 2), torch.nan), 0.01, "fc")
