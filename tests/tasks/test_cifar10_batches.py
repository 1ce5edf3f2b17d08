import os
import pickle

import numpy as np
import pytest
import torch

from compression.errors import UserError
from compression.tasks.cifar10_batches import read_batch
from tests.tasks.data_files import cifar_batches, random_images


def test_a_batch_gives_images_channels_first_and_labels(tmp_path):
    images, labels = read_batch(cifar_batches(tmp_path / "b") / "data_batch_2")
    wanted, wanted_labels = random_images(12, seed=1)
    assert torch.equal(images, torch.from_numpy(wanted).permute(0, 3, 1, 2))
    assert labels.tolist() == wanted_labels


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_written_by_any_python_are_read(tmp_path, protocol):
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, 4]}
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol))
    assert read_batch(tmp_path / "batch")[1].tolist() == [3, 4]


class Runs:
    """Unpickled, it calls `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_something_is_refused(tmp_path, protocol):
    mark = tmp_path / "was here"
    content = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [Runs(os.mkdir, str(mark))]}
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match="batch is not an intact batch of CIFAR-10: it asks for"):
        read_batch(tmp_path / "batch")
    assert not mark.exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, np.load, np.fromfile, np.lib.npyio.NpzFile, torch.load, pickle.loads]
)
def test_no_function_but_the_makers_of_arrays_is_admitted(tmp_path, function):
    (tmp_path / "batch").write_bytes(pickle.dumps(Runs(function, "1")))
    with pytest.raises(UserError, match="it asks for"):
        read_batch(tmp_path / "batch")


def pickled(content):
    return pickle.dumps(content, protocol=2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickled({b"data": np.zeros((2, 3072), np.uint8)})[:500],
        pickled([1, 2]),
        pickled({b"data": np.zeros((2, 3072), np.uint8)}),
        pickled({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}),
        pickled({b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]}),
        pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}),
        pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
    ],
)
def test_a_damaged_batch_is_refused_by_name(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}/batch is not an intact batch"):
        read_batch(tmp_path / "batch")
