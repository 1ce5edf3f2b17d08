import os

import numpy as np
import pytest
import torch

from compression.errors import UserError
from compression.tasks import cifar10, load
from tests.tasks.data_files import (
    LABELS,
    cifar_batches,
    cifar_folder,
    cifar_parquet,
    hub_repository,
    png,
    random_images,
    write_parquet,
)
from tests.tasks.fake_hub import serve


@pytest.fixture
def folder(tmp_path):
    return cifar_folder(tmp_path / "plain_text")


def rows(split):
    return [bytes(image.numpy()) for image in split.inputs]


def channels_first(images):
    return [bytes(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images]


def test_parquet_files_give_all_images_with_their_labels_and_validation_cut_from_train(folder):
    task = load("cifar10", data=str(folder))
    assert [len(split) for split in task.splits().values()] == [54, 6, 20]
    known = {}
    for seed in (1, 2):
        images, labels = random_images(30, seed)
        known |= dict(zip(channels_first(images), labels, strict=True))
    found = [*rows(task.train), *rows(task.validation)]
    assert sorted(found) == sorted(known)
    targets = [*task.train.targets.tolist(), *task.validation.targets.tolist()]
    assert [known[row] for row in found] == targets
    assert sorted(rows(task.test)) == sorted(channels_first(random_images(20, 3)[0]))


def test_torchvisions_batches_give_the_same_task_as_parquet_files_of_their_images(tmp_path):
    cifar_batches(tmp_path / "cifar-10-batches-py")
    for i in range(5):
        cifar_parquet(tmp_path / f"parquet/train-0000{i}-of-00005.parquet", 12, seed=i)
    cifar_parquet(tmp_path / "parquet/test-00000-of-00001.parquet", 20, seed=5)
    pickled, parquet = load("cifar10", data=str(tmp_path)), load("cifar10", data=f"{tmp_path}/parquet")
    assert pickled.digest == parquet.digest


IMAGES_AND_CLASSES = (
    {"name": "img", "dtype": "image"},
    {"name": "label", "dtype": {"class_label": {"names": dict(enumerate(LABELS))}}},
)


@pytest.mark.parametrize("features", [(), IMAGES_AND_CLASSES])
def test_the_hub_gives_the_same_task_as_a_folder_of_its_files(folder, point_at, features):
    repository = hub_repository(folder, "plain_text", ["train", "test"], features)
    with serve({"datasets/uoft-cs/cifar10": repository}) as endpoint:
        point_at(endpoint)
        task = load("cifar10")
    assert task.source == f"uoft-cs/cifar10 from {endpoint}"
    assert task.digest == load("cifar10", data=str(folder)).digest


def test_the_root_of_all_data_is_used_and_named(folder, monkeypatch, tmp_path):
    folder.rename(tmp_path / "cifar10")
    monkeypatch.setenv("COMPRESSION_DATA", str(tmp_path))
    assert load("cifar10").source == f"the folder {tmp_path}/cifar10"


def test_the_second_time_nothing_is_decoded(folder, monkeypatch):
    first = load("cifar10", data=str(folder))
    monkeypatch.setattr(cifar10, "decode", lambda files: pytest.fail("decoded again"))
    assert load("cifar10", data=str(folder)).digest == first.digest


def test_a_damaged_cache_is_made_again(folder, tmp_path):
    first = load("cifar10", data=str(folder))
    (copy,) = (tmp_path / "cache").iterdir()
    os.truncate(copy, copy.stat().st_size // 2)
    assert load("cifar10", data=str(folder)).digest == first.digest


def test_changed_files_are_not_taken_from_the_cache(folder):
    first = load("cifar10", data=str(folder))
    cifar_parquet(folder / "test-00000-of-00001.parquet", 20, seed=4)
    assert load("cifar10", data=str(folder)).digest != first.digest


def test_a_limit_takes_the_first_of_each_split_and_says_so(folder):
    whole, few = load("cifar10", data=str(folder)), load("cifar10", data=str(folder), limit=10)
    assert [len(split) for split in few.splits().values()] == [10, 6, 10]
    assert torch.equal(few.train.inputs, whole.train.inputs[:10])
    assert few.is_limited
    assert few.digest != whole.digest


def test_grey_images_become_colour(tmp_path):
    grey = np.full((32, 32), 9, np.uint8)
    for split in ("train", "test"):
        rows = [{"bytes": png(grey), "path": None}] * 20
        write_parquet(tmp_path / f"{split}.parquet", {"img": rows, "label": [1] * 20}, LABELS)
    assert load("cifar10", data=str(tmp_path)).train.inputs.eq(9).all()


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no image",
        png(random_images(1, 0)[0][0])[:500],
        png(random_images(1, 0)[0][0])[:-2000] + bytes(2000),
        png(np.zeros((31, 32, 3), np.uint8)),
        png(np.zeros((1, 1, 3), np.uint8)),
        None,
    ],
)
def test_an_image_that_cannot_be_used_is_named(folder, image):
    rows = [{"bytes": png(np.zeros((32, 32, 3), np.uint8)), "path": "a"}] * 2 + [{"bytes": image, "path": "a"}]
    file = write_parquet(folder / "test-00000-of-00001.parquet", {"img": rows, "label": [0, 1, 2]})
    with pytest.raises(UserError, match=f"Image 2 of {file} cannot be used: ."):
        load("cifar10", data=str(folder))


def test_augmentation_flips_and_shifts_the_stored_images(folder):
    task = load("cifar10", data=str(folder))
    images = task.train.inputs
    varied = task.augment(images, torch.Generator().manual_seed(0))
    assert (varied.shape, varied.dtype) == (images.shape, torch.uint8)
    centre = varied[:, :, 8:24, 8:24]
    either = torch.stack([images, images.flip(-1)])
    for i in range(len(images)):
        windows = either[:, i].unfold(2, 16, 1).unfold(3, 16, 1)  # (2, 3, 17, 17, 16, 16)
        assert (windows == centre[i][None, :, None, None]).all(dim=(1, 4, 5)).sum() == 1
