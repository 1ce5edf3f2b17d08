import os

import datasets
import pytest

from compression.errors import UserError
from compression.models import hub
from compression.tasks import tables
from compression.tasks.sources import PublicDataset, find_dataset
from tests.tasks.data_files import hub_repository, write_parquet
from tests.tasks.fake_hub import serve

TOYS = PublicDataset(
    "glue/toy",
    "somebody/toys",
    subfolders=("toy", "data"),
    splits=("train", "test"),
    optional_splits=("extra",),
    other_names={"train": ("part_1", "part_2"), "test": ("rest",)},
)


def fill(folder, *names):
    for i, name in enumerate(names):
        write_parquet(folder / name, {"label": [i]})
    return folder


def names(found):
    return {split: [file.name for file in files] for split, files in found.files.items()}


WHOLE = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet")


@pytest.mark.parametrize("below", ["", "toy", "data", "glue/toy", "glue/toy/data"])
def test_a_given_folder_is_searched_where_the_hub_keeps_files(tmp_path, below):
    fill(tmp_path / "given" / below, *WHOLE)
    found = find_dataset(TOYS, f"{tmp_path}/given")
    assert names(found) == {"train": list(WHOLE[:2]), "test": [WHOLE[2]]}
    assert found.source == f"the folder {tmp_path}/given"


@pytest.mark.parametrize(
    "files",
    [("train.parquet", "test.parquet"), ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet")],
)
def test_other_common_names_of_parquet_files_are_known(tmp_path, files):
    assert sum(len(found) for found in find_dataset(TOYS, str(fill(tmp_path, *files))).files.values()) == len(files)


def test_a_split_is_not_taken_for_another_that_begins_like_it(tmp_path):
    fill(tmp_path, "train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "test_b-00000-of-00001.parquet")
    assert names(find_dataset(TOYS, str(tmp_path)))["test"] == ["test-00000-of-00001.parquet"]


def test_an_optional_split_is_found_where_it_is(tmp_path):
    fill(tmp_path, *WHOLE, "extra-00000-of-00001.parquet")
    assert names(find_dataset(TOYS, str(tmp_path)))["extra"] == ["extra-00000-of-00001.parquet"]


def test_files_of_another_format_are_found_by_their_names(tmp_path):
    for name in ("part_1", "part_2", "rest"):
        (tmp_path / name).touch()
    assert names(find_dataset(TOYS, str(tmp_path))) == {"train": ["part_1", "part_2"], "test": ["rest"]}


@pytest.mark.parametrize(
    ("files", "split"),
    [(WHOLE[1:], "train"), (WHOLE[:2], "test"), (["part_1", "rest"], "train"), (["part_1", "part_2"], "test")],
)
def test_a_missing_file_is_noticed(tmp_path, files, split):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{tmp_path} lacks files of glue/toy's {split} split"):
        find_dataset(TOYS, str(tmp_path))


def test_a_folder_without_the_data_is_refused_even_where_the_root_has_it(tmp_path, monkeypatch):
    fill(tmp_path / "root/glue/toy", *WHOLE)
    monkeypatch.setenv("COMPRESSION_DATA", f"{tmp_path}/root")
    with pytest.raises(UserError, match="data=nowhere does not hold glue/toy.*toy or data.*train-"):
        find_dataset(TOYS, "nowhere")


def test_the_root_of_all_data_holds_a_folder_per_task(tmp_path, monkeypatch):
    fill(tmp_path / "glue/toy", *WHOLE)
    monkeypatch.setenv("COMPRESSION_DATA", str(tmp_path))
    assert find_dataset(TOYS).source == f"the folder {tmp_path}/glue/toy"


@pytest.mark.parametrize("root", ["", "/nowhere"])
def test_data_found_nowhere_says_at_once_where_it_looked_and_what_to_set(monkeypatch, caplog, root):
    monkeypatch.setenv("COMPRESSION_DATA", root)
    looked = "not below COMPRESSION_DATA=/nowhere" if root else "COMPRESSION_DATA is not set"
    with pytest.raises(UserError, match=f"{looked}.*no whole copy.*127.0.0.1:9.*HF_ENDPOINT.*data=FOLDER"):
        find_dataset(TOYS)
    assert "Retrying" not in caplog.text  # as the hub's libraries would, for most of a minute


def test_offline_mode_of_the_data_is_named(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_DATASETS_OFFLINE forbids asking the hub, unset it"):
        find_dataset(TOYS)


def test_an_endpoint_that_never_answers_is_given_up(monkeypatch, point_at):
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.2)
    with serve({}, delay=2) as endpoint:
        point_at(endpoint)
        assert not hub.is_reachable()


@pytest.fixture
def mirror(tmp_path, point_at):
    """The endpoint of a hub that has the toys."""
    toys = hub_repository(fill(tmp_path / "toys", *WHOLE), "toy", ["train", "test"])
    with serve({"datasets/somebody/toys": toys}) as endpoint:
        point_at(endpoint)
        yield endpoint


def test_a_mirror_gives_the_data_and_the_copy_here_from_then_on(mirror, point_at):
    first = find_dataset(TOYS)
    assert first.source == f"somebody/toys from {mirror}"
    assert tables.read_tables(first.files["train"], [], ())["label"].to_pylist() == [0, 1]
    assert tables.read_tables(first.files["test"], [], ())["label"].to_pylist() == [2]
    point_at("http://127.0.0.1:9")
    assert find_dataset(TOYS).fingerprint() == first.fingerprint()


def test_a_copy_that_load_dataset_made_elsewhere_is_found_without_a_network(mirror, point_at):
    made = datasets.load_dataset("somebody/toys", "toy")
    point_at("http://127.0.0.1:9")
    files = {split: [str(file) for file in files] for split, files in find_dataset(TOYS).files.items()}
    assert files == {split: [part["filename"] for part in made[split].cache_files] for split in made}


@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_a_damaged_copy_is_not_taken(mirror, point_at, share):
    file = find_dataset(TOYS).files["train"][0]
    os.truncate(file, int(file.stat().st_size * share))
    point_at("http://127.0.0.1:9")
    with pytest.raises(UserError, match="no whole copy made by load_dataset is in .*/datasets, "):
        find_dataset(TOYS)


def test_a_mirror_without_the_data_is_named(point_at):
    with serve({}) as endpoint:
        point_at(endpoint)
        with pytest.raises(UserError, match=f"{endpoint} does not give it"):
            find_dataset(TOYS)


@pytest.mark.parametrize(
    ("splits", "reason"), [([], "'toy' not found"), (["train"], "somebody/toys has no split test")]
)
def test_a_repository_without_the_data_is_named(tmp_path, point_at, splits, reason):
    toys = hub_repository(fill(tmp_path / "toys", *WHOLE), "toy" if splits else "other", splits or ["train"])
    with serve({"datasets/somebody/toys": toys}) as endpoint:
        point_at(endpoint)
        with pytest.raises(UserError, match=reason):
            find_dataset(TOYS)


@pytest.mark.parametrize("spoil", [lambda whole: whole[:4] + b"\xff" * 60 + whole[64:], lambda whole: whole[:-9]])
def test_a_corrupt_file_on_the_hub_is_refused(tmp_path, point_at, spoil):
    toys = hub_repository(fill(tmp_path / "toys", *WHOLE), "toy", ["train", "test"])
    toys[f"toy/{WHOLE[0]}"] = spoil(toys[f"toy/{WHOLE[0]}"])
    with serve({"datasets/somebody/toys": toys}) as endpoint:
        point_at(endpoint)
        for _ in range(2):  # nothing half-made is taken for a copy the second time
            with pytest.raises(UserError, match="(?i)parquet|thrift|page header"):
                find_dataset(TOYS)


def test_a_full_disk_while_preparing_is_said(mirror, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "finalize", full)
    with pytest.raises(UserError, match="cannot be prepared in .*No space left on device; make room"):
        find_dataset(TOYS)


def test_the_fingerprint_is_of_content_and_split_but_not_of_the_place(tmp_path):
    one = find_dataset(TOYS, str(fill(tmp_path / "one", "train.parquet", "test.parquet")))
    same = find_dataset(TOYS, str(fill(tmp_path / "two/toy", "train.parquet", "test.parquet")))
    swapped = find_dataset(TOYS, str(fill(tmp_path / "three", "test.parquet", "train.parquet")))
    assert one.fingerprint() == same.fingerprint() != swapped.fingerprint()
