"""Launches on disk: written whole or not at all, for their owner alone."""

import json
import os
import resource
import stat
import time
from contextlib import contextmanager

import pytest
import requests

from compression.errors import UserError
from compression.study import database, definition, launches
from compression.study.private import make_private
from compression.study.web import serving
from compression.study.web.access import LocalAccess
from tests.study.browser import served


def wait_for(launch):
    until = time.monotonic() + 120
    while launch.state == "running":
        assert time.monotonic() < until, launch.log
        time.sleep(0.1)


@contextmanager
def full_disk(bytes_left):
    """No file may grow beyond so many bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("bytes_left", [0, 1, 40])
def test_on_a_full_disk_nothing_is_started_and_nothing_is_left(study, bytes_left):
    with full_disk(bytes_left), pytest.raises(UserError, match="Cannot write to"):
        launches.start("p07", ["--help"])
    assert launches.list_launches("p07") == []
    assert [path.name for path in launches.launch_folder("p07").iterdir()] == ["lock"]


def test_half_a_launch_of_an_earlier_version_breaks_no_page(lab):
    lab.join("p07", until="practice")
    contents = (b"", b"{", b"[]", b"null", b'{"words": 3}', b'{"words": ["x"], "at": "now"}', b"\xff")
    for number, content in enumerate(contents):
        folder = launches.launch_folder("p07") / f"20260101-000000-00000{number}"
        folder.mkdir(parents=True)
        (folder / "command.json").write_bytes(content)
    assert launches.list_launches("p07") == []
    with served(LocalAccess("p07")) as address:
        pages = ("/", "/launches", f"/launches/{folder.name}")
        assert [requests.get(f"{address}{path}", timeout=60).status_code for path in pages] == [200, 200, 400]


@pytest.mark.parametrize("content", ["", "[", "[1]", "[null, null]", '["x", 1]', "[-5, 1]", "{}", "3"])
def test_a_launch_whose_process_is_unknown_is_lost_and_stops_quietly(study, content):
    folder = launches.launch_folder("p07") / "20260101-000000-000000"
    folder.mkdir(parents=True)
    (folder / "command.json").write_text(json.dumps({"words": ["x"], "at": "2026-01-01T00:00:00+00:00"}))
    (folder / "process.json").write_text(content)
    [launch] = launches.list_launches("p07")
    assert (launch.state, launch.log) == ("lost", "")
    launch.stop()


def test_a_launch_and_what_it_writes_are_for_their_owner_alone(study, place):
    before = os.umask(0o022)
    try:
        launch = launches.start("p07", ["--version"], COMPRESSION_EXPERIMENTS="p07")
        wait_for(launch)
    finally:
        os.umask(before)
    assert launch.state == "finished", launch.log
    for folder in (place / "home" / "launches", launch.folder.parent, launch.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((launch.folder / "exit").stat().st_mode) == 0o600


def test_the_study_and_its_folders_are_for_their_owner_alone(place):
    before = os.umask(0o022)
    try:
        database.save_definition(definition.DEFAULT_FILE.read_text(encoding="utf-8"))
        file = place / "home" / "study.db"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o664)  # as an earlier version made it
        (place / "home" / "launches").mkdir(mode=0o755)
        serving.protect_files()
        for name, mode in (("study.db", 0o600), ("launches", 0o700), ("runs", 0o700)):
            assert stat.S_IMODE((place / "home" / name).stat().st_mode) == mode
        (place / "new").touch()
        assert stat.S_IMODE((place / "new").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_rights_of_the_owner_stay(tmp_path):
    (tmp_path / "script").touch()
    (tmp_path / "script").chmod(0o755)
    make_private(tmp_path / "script")
    assert stat.S_IMODE((tmp_path / "script").stat().st_mode) == 0o700
