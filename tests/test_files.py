"""A file is the old one or the new one, never half of one; its checksum is its content's; CSV holds no formula."""

import csv
import hashlib
import io

import pytest

from compression.errors import first_line
from compression.files import file_sha256, fill_folder, replace_file, to_csv


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


SIGNS = ("=1+1", "+1", "-1", "@SUM(A1)", "＝1", "＋1", "－1", "＠a")
BLANKS = ("", " ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\ufeff", "\u200b", "\0", " \x01\t", "\u2028 ")


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("sign", SIGNS)
def test_a_spreadsheet_evaluates_no_cell_and_no_heading(blank, sign):
    text = blank + sign
    heading, row = csv.reader(io.StringIO(to_csv([{text: text}]), newline=""))
    assert heading == row == [f"'{text}"]


def test_other_cells_stay_as_they_are():
    rows = [{"name": "layer-1", "bits": 8, "change": -0.5, "note": "a = b", "on": True}, {"name": "中文", "more": None}]
    assert to_csv(rows) == "name,bits,change,note,on,more\nlayer-1,8,-0.5,a = b,True,\n中文,,,,,\n"
    assert to_csv(rows, ["bits", "name"]) == "bits,name\n8,layer-1\n,中文\n"


def test_an_exception_that_says_nothing_is_called_by_its_type():
    assert [first_line(error) for error in (ValueError(), ValueError("  "), ValueError("\n a\nb"))] == [
        "ValueError",
        "ValueError",
        "a",
    ]


def test_a_folder_is_filled_whole_or_stays_as_it_was_and_others_may_read_it(tmp_path):
    folder = tmp_path / "folder"
    with fill_folder(folder) as scratch:
        (scratch / "weights").write_text("first")
        (scratch / "weights").chmod(0o600)  # as safetensors leaves its files
    plain = tmp_path / "plain"
    plain.touch()
    assert (folder / "weights").stat().st_mode == plain.stat().st_mode

    def fail():
        with fill_folder(folder) as scratch:
            (scratch / "weights").write_text("second")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert (folder / "weights").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "plain"}
