"""`hub/OWNER/NAME`: sets of the hub, from a server that answers like it, and from folders laid out like it."""

import json

import pytest

from compression.errors import UserError
from compression.models import hub
from compression.tasks import load
from tests.tasks.data_files import hub_repository, write_parquet
from tests.tasks.fake_hub import serve

CLASSES = ("world", "sports", "business")


def write(folder, splits=("train", "validation", "test")):
    for split in splits:
        columns = {"text": [f"news number {i}" for i in range(30)], "label": [i % 3 for i in range(30)]}
        write_parquet(folder / f"{split}-00000-of-00001.parquet", columns, CLASSES)
    return folder


@pytest.fixture(autouse=True)
def _fresh():
    hub._responds.cache_clear()


def test_a_set_is_downloaded_and_read_like_its_folder(tmp_path, point_at):
    folder, splits = write(tmp_path / "somebody/news"), ("train", "validation", "test")
    repositories = {"datasets/somebody/news": hub_repository(folder, "default", splits)}
    with serve(repositories) as endpoint:
        point_at(endpoint)
        task = load("hub/somebody/news", model="lstm")
        assert endpoint in task.source
    local = load("hub/somebody/news", data=str(folder), model="lstm")
    assert task.digest == local.digest
    assert task.name == local.name == "hub/somebody/news"
    assert task.labels == CLASSES
    assert [len(split) for split in task.splits().values()] == [30, 30, 30]


def test_a_set_is_found_below_the_root_of_all_data(tmp_path, monkeypatch):
    write(tmp_path / "somebody/news")
    monkeypatch.setenv("COMPRESSION_DATA", str(tmp_path))
    assert load("hub/somebody/news", model="lstm").labels == CLASSES


@pytest.mark.parametrize("below", ["", "data", "plain"])
def test_a_folder_is_searched_where_the_hub_keeps_files(tmp_path, below):
    write(tmp_path / below)
    assert load("hub/somebody/news/plain", data=str(tmp_path), model="lstm").labels == CLASSES


def test_one_of_several_configurations_has_to_be_named(tmp_path, point_at):
    content = {}
    for name in ("first", "second"):
        content |= hub_repository(write(tmp_path / name), name, ("train",))
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]}
        for name in ("first", "second")
    ]
    content["README.md"] = f"---\n{json.dumps({'configs': configs})}\n---\n".encode()
    with serve({"datasets/somebody/news": content}) as endpoint:
        point_at(endpoint)
        with pytest.raises(UserError, match=r"several configurations: hub/somebody/news/CONFIG, of 'first', 'second'"):
            load("hub/somebody/news", model="lstm")
        with pytest.raises(UserError, match=r"several configurations: .*'first', 'second'"):
            load("hub/somebody/news/third", model="lstm")
        assert load("hub/somebody/news/second", model="lstm").labels == CLASSES


def test_a_hub_that_does_not_answer_and_one_that_lacks_the_set_are_told(point_at):
    with pytest.raises(UserError, match=r"somebody/news was not found.*cannot be reached, set HF_ENDPOINT") as refusal:
        load("hub/somebody/news", model="lstm")
    assert "\n" not in str(refusal.value)
    with serve({}) as endpoint:
        point_at(endpoint)
        with pytest.raises(UserError, match="does not give it .*check the name"):
            load("hub/somebody/news", model="lstm")


@pytest.mark.parametrize("name", ["hub/", "hub/a//b", "hub/a/b/c/d", "hub/../b"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UserError, match="names no data set: write hub/OWNER/NAME"):
        load(name)
