"""Folders of images as people have them: other names for splits, hidden files, other kinds of pixels."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from compression.errors import UserError
from compression.tasks import load
from compression.tasks.imagefolder import load_image
from tests.tasks.test_imagefolder import COLOURS, load_folder, paint, sizes

RAMP = (np.arange(1600).reshape(40, 40) * 65535 // 1600).astype(np.uint16)


def save(file, image, **options):
    image.save(file, **options)
    return load_image(file, 32)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "VAL"), ("train", "valid"), ("Training", "Validation")],
)
def test_splits_are_found_by_any_usual_name(tmp_path, train, test):
    paint(tmp_path / train, 10)
    paint(tmp_path / test, 4)
    task = load_folder(tmp_path)
    assert task.labels == ("blue", "green", "red")
    assert sizes(task) == [27, 3, 12]


def test_three_splits_of_other_names_are_used_as_they_are(tmp_path):
    for split, count in (("Training", 5), ("valid", 3), ("TEST", 4)):
        paint(tmp_path / split, count)
    assert sizes(load_folder(tmp_path)) == [15, 9, 12]


@pytest.mark.parametrize("place", ["", "blue", "blue/more"])
@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git"])
def test_hidden_folders_hold_neither_classes_nor_images(tmp_path, place, hidden):
    folder = paint(tmp_path / "images", 20)
    before = load_folder(folder).digest
    shutil.copytree(folder / "red", folder / place / hidden / "red")
    shutil.copy(folder / "red/0.png", folder / place / hidden / "0-checkpoint.png")
    task = load_folder(folder)
    assert task.labels == ("blue", "green", "red")
    assert task.digest == before


def test_hidden_files_are_no_images(tmp_path):
    folder = paint(tmp_path / "images", 20)
    (folder / "red" / "._0.png").write_bytes(b"what macOS writes beside a file")
    assert sizes(load_folder(folder)) == [51, 3, 6]


def test_a_class_called_train_is_a_class(tmp_path):
    paint(tmp_path, 20, {"train": (1, 2, 3), "plane": (200, 2, 3)})
    assert load_folder(tmp_path).labels == ("plane", "train")


def test_a_class_is_matched_by_name_in_every_split_and_may_be_missing_in_the_test_split(tmp_path, caplog):
    paint(tmp_path / "train", 10, {"Blue": COLOURS["blue"], "Green": COLOURS["green"], "Red": COLOURS["red"]})
    paint(tmp_path / "test", 4, {"red": COLOURS["red"], "green": COLOURS["green"]})
    (tmp_path / "test" / "blue").mkdir()
    task = load_folder(tmp_path)
    assert task.labels == ("Blue", "Green", "Red")
    brightest = task.test.inputs.float().mean((2, 3)).argmax(1)
    assert [{0: 2, 1: 1}[channel] for channel in brightest.tolist()] == task.test.targets.tolist()
    assert "has no image of Blue" in caplog.text


def write(folder, *names):
    for name in names:
        paint(folder / name, 4)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train", "Train"], "are both the train split"),
        (["train", "val", "validation"], "are both the validation split"),
        (["val", "test"], "but no folder train with a folder of images for each class"),
        (["train", "holdout"], "holdout has folders of classes as train has, and is no split"),
        (["seg_train", "seg_test"], "hold the same folders; if these are the classes, name the splits train and test"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, names, said):
    write(tmp_path, *names)
    with pytest.raises(UserError, match=said):
        load_folder(tmp_path)


def test_splits_without_folders_of_classes_are_not_taken_for_classes(tmp_path):
    paint(tmp_path, 4, {"train": (1, 2, 3), "test": (200, 2, 3)})
    with pytest.raises(UserError, match="holds test, train, but no folder train with a folder of images"):
        load_folder(tmp_path)


def test_classes_whose_names_differ_in_case_alone_are_refused(tmp_path):
    paint(tmp_path, 4, {"cat": (1, 2, 3), "Cat": (9, 2, 3), "dog": (200, 2, 3)})
    with pytest.raises(UserError, match="Cat and .*cat have the same name but for its case"):
        load_folder(tmp_path)


def test_signs_tell_classes_apart(tmp_path):
    paint(tmp_path, 4, {"c": (1, 2, 3), "c++": (9, 2, 3), "c#": (200, 2, 3)})
    assert load_folder(tmp_path).labels == ("c", "c#", "c++")


def test_copies_of_a_tested_image_are_not_trained_on(tmp_path):
    folder = paint(tmp_path / "images", 12)
    for name in COLOURS:
        for i in range(12):
            shutil.copy(folder / name / f"{i}.png", folder / name / f"{i} (copy).png")
    splits = load_folder(folder).splits().values()
    seen = [{row.numpy().tobytes() for row in split.inputs} for split in splits]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_copies_between_given_splits_are_told(tmp_path, caplog):
    paint(tmp_path / "train", 10)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    load_folder(tmp_path)
    assert "30 of 30 images to validate or test on are in the training data too" in caplog.text


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_greys_of_16_bits_keep_their_shades(tmp_path, suffix, dtype):
    pixels = save(tmp_path / f"ramp.{suffix}", Image.fromarray(RAMP.astype(dtype)))
    shown = save(tmp_path / "shown.png", Image.fromarray((RAMP // 257).astype(np.uint8)))
    assert (pixels.int() - shown.int()).abs().max() <= 1
    assert len(pixels.unique()) > 100


@pytest.mark.parametrize("pixels", [RAMP.astype(np.int32), RAMP.astype(np.float32)])
def test_greys_of_32_bits_have_no_range_and_are_refused(tmp_path, pixels):
    with pytest.raises(UserError, match="no fixed range; save them with 8 or 16 bits"):
        save(tmp_path / "grey.tif", Image.fromarray(pixels))


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    upright = np.zeros((40, 40, 3), np.uint8)
    upright[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees to the left
    turned = save(tmp_path / "turned.png", Image.fromarray(np.rot90(upright).copy()), exif=exif)
    assert torch.equal(turned, save(tmp_path / "upright.png", Image.fromarray(upright)))


def see_through(mode):
    """A grey image of which the left half is transparent, over black."""
    pixels = np.full((40, 40, 4), 100, np.uint8)
    pixels[:, :20] = 0
    pixels[:, 20:, 3] = 255
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    pixels = save(tmp_path / "half.png", see_through(mode))
    assert pixels[:, :, 4].eq(255).all()
    assert pixels[:, :, 28].eq(100).all()


def test_a_palette_is_shown_in_its_colours(tmp_path):
    red = Image.fromarray(np.full((40, 40, 3), (250, 10, 20), np.uint8)).quantize(4)
    assert save(tmp_path / "red.gif", red).flatten(1).unique(dim=1).flatten().tolist() == [250, 10, 20]


def test_another_normalization_is_another_data_set(tmp_path):
    folder = paint(tmp_path / "images", 4)
    usual, other = load_folder(folder), load_folder(folder, mean=(0.5,), std=(0.5, 0.25, 0.125))
    assert torch.equal(usual.test.inputs, other.test.inputs)
    whites = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(other.test.prepare(whites).flatten(), torch.tensor([1.0, 2.0, 4.0]))
    assert usual.digest != other.digest
    assert load_folder(folder, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).digest == usual.digest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": (0.5, 0.5)}, "mean=0.5/0.5 has 2 numbers; it takes 1 or 3"),
        ({"mean": (123.7, 116.3, 103.5)}, r"mean=123.7/116.3/103.5 .* for pixels in \[0, 1\]"),
        ({"std": (0.0,)}, "std is not 0"),
    ],
)
def test_a_normalization_that_cannot_be_is_refused(tmp_path, given, said):
    with pytest.raises(UserError, match=said):
        load_folder(paint(tmp_path / "images", 4), **given)


def test_digits_are_normalized_as_asked_and_texts_are_not():
    usual, other = load("digits"), load("digits", mean=(0.0,), std=(1.0,))
    assert usual.digest != other.digest
    assert 0 <= other.example(9).min() < other.example(9).max() <= 1
    with pytest.raises(UserError, match="glue/sst2 has no use for them"):
        load("glue/sst2", mean=(0.5,))


def test_a_single_example_stands_for_several():
    task = load("digits", limit=1)
    assert torch.equal(task.example(3), task.example(1).repeat(3, 1, 1, 1))
