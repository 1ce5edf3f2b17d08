"""A SQLite store is made whole or not at all: interrupted or several at once, the next run finds one that opens."""

import os
import shutil
import signal
import sqlite3
import threading
import time

import pytest
from mlflow import MlflowClient

from compression.errors import UserError
from compression.tracking import server, store


def forked(work):
    """Run `work` in a copy of this process, which takes no import; return its process id."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of this process may go on in the copy
            os._exit(1)
    return pid


def being_made(path):
    """A process that is making a store, some tables of which exist."""
    pid = forked(lambda: store.make_whole(path))
    new = path.with_name(f".{path.name}.new")
    while not new.exists() or new.stat().st_size < 100_000:
        assert not os.waitpid(pid, os.WNOHANG)[0], "it was made before it could be interrupted"
        time.sleep(0.005)
    return pid


def end(pid, number=signal.SIGKILL):
    os.kill(pid, number)
    return os.waitpid(pid, 0)[1]


@pytest.fixture(scope="module")
def half_made(tmp_path_factory):
    """A store whose making was interrupted, as MLflow leaves it."""
    path = tmp_path_factory.mktemp("half") / "mlflow.db"
    end(being_made(path))
    return path.with_name(".mlflow.db.new")


def opens(path):
    return [found.name for found in MlflowClient(f"sqlite:///{path}").search_experiments()] == ["Default"]


def test_a_store_that_was_interrupted_is_made_by_the_next_run(tmp_path):
    path = tmp_path / "mlflow.db"
    end(being_made(path))
    assert not path.exists()
    store.make_whole(path)
    assert opens(path)
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_a_second_run_waits_for_the_first_to_make_the_store(tmp_path):
    path = tmp_path / "mlflow.db"
    pids = [being_made(path), forked(lambda: store.make_whole(path)), forked(lambda: server.create_client(uri(path)))]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert opens(path)
    assert os.listdir(tmp_path) == ["mlflow.db"]


def uri(path):
    return f"sqlite:///{path}"


def test_a_half_made_store_is_named_moved_aside_and_made_anew(tmp_path, half_made, monkeypatch, capsys):
    monkeypatch.setattr(store, "STILL_SECONDS", 0.3)
    path = tmp_path / "mlflow.db"
    shutil.copy(half_made, path)
    server.create_client(uri(path)).search_experiments()
    assert opens(path)
    assert sorted(os.listdir(tmp_path)) == ["mlflow.db", "mlflow.db.half-made-1"]
    said = capsys.readouterr().err
    assert f"{path} was left half-made by a first run that was interrupted" in said
    assert said.strip().endswith("mlflow.db.half-made-1.")


def test_a_half_made_store_that_holds_something_else_is_refused(tmp_path, half_made, monkeypatch):
    monkeypatch.setattr(store, "STILL_SECONDS", 0.3)
    path = tmp_path / "mlflow.db"
    shutil.copy(half_made, path)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE letters (text)")
        database.execute("INSERT INTO letters VALUES ('dear')")
    with pytest.raises(UserError, match="holds the table letters besides; set MLFLOW_TRACKING_URI"):
        store.make_whole(path)
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_a_store_that_mlflow_itself_is_making_is_waited_for(tmp_path, half_made, monkeypatch):
    monkeypatch.setattr(store, "STILL_SECONDS", 3600.0)
    path = tmp_path / "mlflow.db"
    shutil.copy(half_made, path)

    def finish():
        time.sleep(0.5)
        with sqlite3.connect(path, timeout=30) as database:
            columns = [column[1] for column in database.execute("PRAGMA table_info(experiments)")]
            database.execute(f"INSERT INTO experiments ({columns[0]}, {columns[1]}) VALUES (0, 'Default')")

    threading.Thread(target=finish).start()
    store.make_whole(path)
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_the_folder_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"unable to open .*Not a directory; make the folder writable"):
        server.create_client(uri(tmp_path / "file" / "mlflow.db"))


def test_a_link_to_a_store_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "mlflow.db"
    link.symlink_to(tmp_path / "disk" / "runs.db")
    store.make_whole(link)
    assert link.is_symlink()
    assert opens(tmp_path / "disk" / "runs.db")


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "http://lab"])
def test_only_files_are_made(given):
    assert store.sqlite_path(given) is None
