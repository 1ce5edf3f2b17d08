import pytest
import torch

from compression.tasks.splits import fixed_permutation, splits_digest, train_validation_indices
from compression.tasks.task import Split


def split(inputs, targets):
    return Split(inputs, targets, lambda stored: stored)


def test_the_order_is_a_fixed_permutation():
    assert sorted(fixed_permutation(100).tolist()) == list(range(100))
    # NumPy promises this stream for ever: another one would quietly change everybody's splits.
    assert fixed_permutation(10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]


def test_the_order_does_not_depend_on_the_seed_of_the_run():
    torch.manual_seed(1)
    first = fixed_permutation(50)
    torch.manual_seed(2)
    assert torch.equal(first, fixed_permutation(50))


@pytest.mark.parametrize(("n", "held_out"), [(2, 1), (20, 2), (50_000, 5000), (100_000, 5000)])
def test_a_tenth_and_at_most_5000_are_held_out(n, held_out):
    train, validation = train_validation_indices(n)
    assert len(validation) == held_out
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(n))


def test_equal_data_has_equal_digests_and_any_change_another():
    x, y = torch.arange(12, dtype=torch.uint8).reshape(3, 4), torch.tensor([0, 1, 2])
    first = splits_digest([split(x, y)])
    assert first == splits_digest([split(x.clone(), y.clone())])
    others = [split(x + 1, y), split(x, y + 1), split(x.reshape(3, 2, 2), y), split(x.int(), y), split(x[:2], y[:2])]
    assert len({first, *(splits_digest([other]) for other in others)}) == 6


def test_the_digest_does_not_depend_on_the_order_of_named_tensors():
    a, b, y = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0, 1])
    assert splits_digest([split({"a": a, "b": b}, y)]) == splits_digest([split({"b": b, "a": a}, y)])
    assert splits_digest([split({"a": a, "b": b}, y)]) != splits_digest([split({"a": b, "b": a}, y)])
