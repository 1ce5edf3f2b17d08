import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from compression.errors import UserError
from compression.tasks import load


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def rows(split):
    return [bytes(image.numpy()) for image in split.inputs]


def test_the_splits_are_60_20_20_and_together_all_digits(digits):
    assert [len(split) for split in digits.splits().values()] == [1078, 359, 360]
    together = sorted(row for split in digits.splits().values() for row in rows(split))
    everything = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert together == sorted(map(bytes, everything))


def test_every_split_has_each_digit_in_its_share(digits):
    whole = np.bincount(load_digits().target)
    for split in digits.splits().values():
        share = split.targets.bincount(minlength=10).numpy() / len(split)
        np.testing.assert_allclose(share, whole / whole.sum(), atol=0.004)


def test_images_use_the_whole_range_of_uint8(digits):
    assert digits.train.inputs.dtype == torch.uint8
    assert (digits.train.inputs.min(), digits.train.inputs.max()) == (0, 255)
    inputs, _ = next(digits.train.batches(2000))
    assert inputs.shape == (1078, *digits.input_shape)
    assert (inputs.mean().item(), inputs.std().item()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))


def test_the_data_is_the_same_in_every_run_whatever_the_seed(digits):
    torch.manual_seed(123)
    assert load("digits").digest == digits.digest == "aa6131f355b8122f"


def test_a_limit_takes_the_first_of_each_split_and_says_so(digits):
    few = load("digits", limit=50)
    assert [len(split) for split in few.splits().values()] == [50, 50, 50]
    assert torch.equal(few.train.inputs, digits.train.inputs[:50])
    assert few.is_limited
    assert not digits.is_limited
    assert few.digest != digits.digest
    assert set(few.train.targets.tolist()) == set(range(10))


def test_a_data_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="leave data= empty"):
        load("digits", data=str(tmp_path))
