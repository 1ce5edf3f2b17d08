import os
from pathlib import Path

import pytest
import torch

from compression.tasks import cache


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"images": torch.arange(5000, dtype=torch.int32), "labels": torch.tensor([1, 2])}


@pytest.fixture
def make():
    return Maker()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_what_was_made_once_is_read_back(make):
    first, second = cache.cached("data", make), cache.cached("data", make)
    assert make.calls == 1
    assert same(first, second)


def test_another_key_is_made_anew(make):
    cache.cached("data", make), cache.cached("other", make)
    assert make.calls == 2


def damage(file: Path, where: int):
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: os.truncate(file, 3000),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(b"no safetensors"),
        lambda file: damage(file, -1000),  # one bit of one number
        lambda file: damage(file, 40),  # of the header
    ],
)
def test_a_damaged_copy_is_made_again(make, spoil, caplog):
    whole = cache.cached("data", make)
    spoil(cache.cache_folder() / "data.safetensors")
    assert same(cache.cached("data", make), whole)
    assert "made again" in caplog.text
    cache.cached("data", make)
    assert make.calls == 2


def test_nothing_but_the_whole_file_is_left_behind(make):
    cache.cached("data", make)
    assert [file.name for file in cache.cache_folder().iterdir()] == ["data.safetensors"]


def test_a_folder_that_cannot_be_written_costs_only_time(make, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("COMPRESSION_CACHE", str(tmp_path / "file"))
    assert same(cache.cached("data", make), make())
    assert "COMPRESSION_CACHE" in caplog.text
