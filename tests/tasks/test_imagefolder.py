"""Any folder of images as a task, from a few generated ones."""

import os
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from compression.errors import UserError
from compression.tasks import load
from compression.tasks.imagefolder import load_image, prepare

COLOURS = {"blue": (20, 30, 220), "green": (10, 200, 30), "red": (230, 10, 10)}


def paint(folder, count, colours=COLOURS, size=(40, 30), suffix="png"):
    """Write `count` images of each colour into a folder of its name."""
    random = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shades = np.clip(np.array(colour) + random.integers(-9, 10, (*size[::-1], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(shades).save(folder / name / f"{i}.{suffix}")
    return folder


def load_folder(folder, **changes):
    return load("imagefolder/32", data=str(folder), **changes)


@pytest.fixture
def folder(tmp_path):
    return paint(tmp_path / "images", 20)


def sizes(task):
    return [len(split) for split in task.splits().values()]


def test_a_tenth_of_each_class_is_tested_and_a_tenth_of_the_rest_selects_models(folder):
    task = load_folder(folder)
    assert sizes(task) == [60 - 6 - 3, 3, 6]
    assert torch.bincount(task.test.targets).tolist() == [2, 2, 2]
    assert torch.bincount(task.validation.targets).tolist() == [1, 1, 1]
    assert (task.labels, task.outputs, task.input_shape) == (("blue", "green", "red"), 3, (3, 32, 32))


def test_every_image_has_the_label_of_its_folder(folder):
    for split in load_folder(folder).splits().values():
        middle = split.inputs.float().mean((2, 3))
        assert middle.argmax(1).tolist() == [{0: 2, 1: 1, 2: 0}[label] for label in split.targets.tolist()]


def test_no_image_is_in_two_splits(folder):
    rows = torch.cat([split.inputs.flatten(1) for split in load_folder(folder).splits().values()])
    assert len(torch.unique(rows, dim=0)) == 60


def test_a_new_image_leaves_the_others_where_they_are(folder):
    before = load_folder(folder).test.inputs.flatten(1)
    shutil.copy(folder / "red" / "0.png", folder / "red" / "zz.png")
    after = load_folder(folder).test.inputs.flatten(1)
    stayed = sum(bool((row == after).all(1).any()) for row in before)
    assert stayed >= len(before) - 1


def test_the_same_images_have_the_same_digest_from_cache_or_anew_and_others_another(folder, tmp_path, monkeypatch):
    first = load_folder(folder)
    monkeypatch.setenv("COMPRESSION_CACHE", str(tmp_path / "another"))
    assert load_folder(folder).digest == first.digest
    shutil.move(folder / "red" / "3.png", folder / "blue" / "new.png")
    assert load_folder(folder).digest != first.digest


def test_splits_that_are_there_are_used_as_they_are(tmp_path):
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        paint(tmp_path / split, count)
    assert sizes(load_folder(tmp_path)) == [15, 9, 12]


def test_without_a_test_split_val_is_tested_on_and_validation_is_cut_from_train(tmp_path):
    paint(tmp_path / "train", 10)
    paint(tmp_path / "val", 4)
    assert sizes(load_folder(tmp_path)) == [27, 3, 12]


def test_without_a_val_split_validation_is_cut_from_train(tmp_path):
    paint(tmp_path / "train", 10)
    paint(tmp_path / "test", 4)
    assert sizes(load_folder(tmp_path)) == [27, 3, 12]


def test_a_limit_takes_a_mixed_sample_of_each_split_and_says_so(folder):
    task = load_folder(folder, limit=9)
    assert sizes(task) == [9, 3, 6]
    assert task.is_limited
    assert len(set(task.train.targets.tolist())) > 1


def test_the_middle_of_an_image_is_kept_in_its_proportions(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255  # the middle third is white; what is beside it falls off
    Image.fromarray(wide).save(tmp_path / "wide.png")
    kept = load_image(tmp_path / "wide.png", 32)
    assert kept.shape == (3, 32, 32)
    assert kept.float().mean() > 230


def test_grey_images_become_colours_and_any_format_is_read(tmp_path):
    paint(tmp_path, 4, suffix="jpg")
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "red" / "grey.bmp")
    assert load_image(tmp_path / "red" / "grey.bmp", 8).unique().tolist() == [77]
    assert sizes(load_folder(tmp_path)) == [13 - 6, 3, 3]


def test_the_normalisation_is_imagenets():
    white = prepare(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(white, torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))


def test_its_side_is_224_if_the_name_does_not_say_another(tmp_path):
    assert load("imagefolder", data=str(paint(tmp_path / "few", 3))).test.inputs.shape == (3, 3, 224, 224)


def test_augmented_images_keep_shape_and_type(folder):
    task = load_folder(folder)
    varied = task.augment(task.train.inputs, torch.Generator().manual_seed(0))
    assert (varied.shape, varied.dtype) == (task.train.inputs.shape, torch.uint8)
    assert not torch.equal(varied, task.train.inputs)


def test_without_data_it_says_what_to_give():
    with pytest.raises(UserError, match="imagefolder/32 needs images: give data=PATH"):
        load("imagefolder/32")


def test_compression_data_may_hold_it(folder, monkeypatch):
    folder.rename(folder.parent / "imagefolder")
    monkeypatch.setenv("COMPRESSION_DATA", str(folder.parent))
    assert sizes(load("imagefolder/32")) == [51, 3, 6]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no folder .*nowhere"):
        load_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_classes_are_refused(tmp_path, count):
    paint(tmp_path, 5, dict(list(COLOURS.items())[:count]))
    with pytest.raises(UserError, match=f"has {count} folders of images; a task takes two or more"):
        load_folder(tmp_path)


def test_a_class_without_an_image_is_refused_by_name(folder):
    (folder / "yellow").mkdir()
    with pytest.raises(UserError, match="yellow holds no image"):
        load_folder(folder)


def test_a_class_with_too_few_images_is_refused_by_name(tmp_path):
    paint(tmp_path, 2)
    with pytest.raises(UserError, match="class 'blue' .* too few images"):
        load_folder(tmp_path)


def test_an_image_that_cannot_be_read_is_named(folder):
    (folder / "green" / "7.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="7.png cannot be read"):
        load_folder(folder)


def test_splits_of_other_classes_are_refused(tmp_path):
    paint(tmp_path / "train", 4)
    paint(tmp_path / "test", 4, {"blue": COLOURS["blue"], "pink": COLOURS["red"]})
    with pytest.raises(UserError, match="test has the classes blue, pink; train has blue, green, red"):
        load_folder(tmp_path)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a link to nothing", "a socket"])
def test_what_bears_the_name_of_an_image_and_is_no_file_is_named(folder, kind):
    path = folder / "red" / "x.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        os.chdir(folder / "red")  # a socket's path has 107 characters at most
        socket.socket(socket.AF_UNIX).bind("x.png")
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else folder / "nowhere.png")
    with pytest.raises(UserError, match=r"The image .*x.png cannot be read .*; repair or remove it"):
        load_folder(folder)


def test_links_to_folders_above_are_walked_once(folder):
    expected = load_folder(folder).digest
    for name in ("again", "once_more", "for_ever"):
        (folder / "red" / name).symlink_to(folder / "red")
    assert load_folder(folder).digest == expected
