import os
from pathlib import Path

import pytest
from datasets import Dataset

from compression.errors import UserError
from compression.tasks.tables import read_tables
from tests.tasks.data_files import write_parquet

LABELS = ("bad", "good")


def write_arrow(parquet):
    """The file that `datasets` makes of a parquet file."""
    made = Dataset.from_parquet(str(parquet), cache_dir=str(parquet.parent / "arrow"))
    return Path(made.cache_files[0]["filename"])


def test_files_are_joined_whatever_their_notes(tmp_path):
    one = write_parquet(tmp_path / "1.parquet", {"idx": [0], "text": ["a"], "label": [0]}, LABELS)
    two = write_parquet(tmp_path / "2.parquet", {"text": ["b", "c"], "label": [1, 1]})
    assert read_tables([one, two], ["text"], LABELS).to_pydict() == {"text": ["a", "b", "c"], "label": [0, 1, 1]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"no parquet at all"),
        lambda file: os.truncate(file, file.stat().st_size // 2),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(b"PAR1" + bytes(file.stat().st_size - 8) + b"PAR1"),
        lambda file: file.write_bytes(file.read_bytes()[:4] + b"\xff" * 60 + file.read_bytes()[64:]),
    ],
)
def test_a_corrupt_file_is_refused_by_name(tmp_path, spoil):
    file = write_parquet(tmp_path / "train.parquet", {"text": ["a"] * 50, "label": [0] * 50})
    spoil(file)
    with pytest.raises(UserError, match=f"{file} is not an intact parquet file"):
        read_tables([file], ["text"], LABELS)


def test_arrow_files_are_read_as_parquet_files_are(tmp_path):
    file = write_parquet(tmp_path / "1.parquet", {"idx": [0, 1], "text": ["a", "b"], "label": [0, 1]}, LABELS)
    assert read_tables([write_arrow(file)], ["text"], LABELS).equals(read_tables([file], ["text"], LABELS))


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_a_corrupt_arrow_file_is_refused_by_name(tmp_path, share):
    file = write_arrow(write_parquet(tmp_path / "1.parquet", {"text": ["a"] * 50, "label": [0] * 50}))
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(UserError, match=f"{file} is not an intact arrow file"):
        read_tables([file], ["text"], LABELS)


def whole(file):
    return file


@pytest.mark.parametrize("stored", [whole, write_arrow])
def test_a_missing_column_is_named(tmp_path, stored):
    file = stored(write_parquet(tmp_path / "train.parquet", {"words": ["a"], "label": [0]}))
    with pytest.raises(UserError, match="has no column text; it needs text, label"):
        read_tables([file], ["text"], LABELS)


@pytest.mark.parametrize("stored", [whole, write_arrow])
def test_the_data_of_another_task_is_refused(tmp_path, stored):
    file = stored(write_parquet(tmp_path / "train.parquet", {"text": ["a"], "label": [0]}, ("spam", "ham")))
    with pytest.raises(UserError, match="holds the classes spam, ham; the task has bad, good"):
        read_tables([file], ["text"], LABELS)


@pytest.mark.parametrize("label", [-1, 2, None])
def test_a_label_out_of_range_is_refused(tmp_path, label):
    file = write_parquet(tmp_path / "test.parquet", {"text": ["a", "b"], "label": [0, label]})
    with pytest.raises(UserError, match="without a label, or labels outside 0 to 1"):
        read_tables([file], ["text"], LABELS)


def test_regression_takes_any_number_for_a_label(tmp_path):
    file = write_parquet(tmp_path / "train.parquet", {"text": ["a", "b"], "label": [4.5, 0.0]})
    assert read_tables([file], ["text"], ())["label"].to_pylist() == [4.5, 0.0]
