"""A file is the old one or the new one, never half of one; and its checksum is that of its content."""

import hashlib

import pytest

from compression.files import file_sha256, replace_file


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("old", "new"):
        with replace_file(path) as half:
            half.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail():
        with replace_file(path) as half:
            half.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_checksum_of_a_file_is_the_sha256_of_its_content(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
