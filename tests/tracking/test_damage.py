"""Each run is delivered by itself: a damaged folder loses what is damaged in it, and stops nobody."""

import contextlib
import io
import json
import os
import random
import shutil
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from compression import tracking
from compression.backend import doctor
from compression.errors import UserError
from compression.tracking import store as sqlite_store
from compression.tracking.journal import REJECTED_FILE
from compression.tracking.server import tracking_uri
from tests.tracking import damage
from tests.tracking.damage import ALL, HOPELESS, LINE, NOT_THE_THIRD, SURROGATES, WHOLE, dead_run, state


@pytest.fixture
def client(store):
    """A client of this module's store, in which no earlier test left anything to deliver."""
    shutil.rmtree(store / "home", ignore_errors=True)
    sqlite_store.make_whole(store / "mlflow.db")
    return MlflowClient()


def deliver_both(client, spoil):
    """Deliver a damaged run and one behind it, which arrives whole; return the damaged one's folder."""
    spoiled, sound = dead_run(client, "spoiled"), dead_run(client, "sound")
    spoil(spoiled)
    tracking.sync()
    assert state(client, sound.name) == ("KILLED", ALL)
    return spoiled


@pytest.fixture(scope="module")
def seen(store):
    """One `sync` over a damaged folder of every kind and a sound one behind them: what became of each, and was said."""
    sqlite_store.make_whole(store / "mlflow.db")
    client, folders = MlflowClient(), {}
    for name, spoil in (WHOLE | LINE | SURROGATES | HOPELESS).items():
        folders[name] = dead_run(client, name)
        spoil(folders[name])
    folders["sound"] = dead_run(client, "sound")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        tracking.sync()
        said.write("once more:\n")
        tracking.sync()
    first, again = said.getvalue().split("once more:\n")
    refused = {
        name: (folder / REJECTED_FILE).read_text(encoding="utf-8").splitlines()
        for name, folder in folders.items()
        if (folder / REJECTED_FILE).exists()
    }
    damaged = {path.name.split("-")[0]: path for path in tracking.damaged_folder().iterdir()}
    left, sentences = tracking.undelivered_runs(), [doctor.check_runs(), ""]
    try:
        doctor.check_journals()
    except UserError as error:
        sentences[1] = str(error)
    return SimpleNamespace(
        states={name: state(client, folder.name) for name, folder in folders.items()},
        runs={name: client.get_run(folder.name) for name, folder in folders.items()},
        files={name: client.list_artifacts(folder.name) for name, folder in folders.items()},
        **{"folders": folders, "said": first, "again": again, "refused": refused, "damaged": damaged, "left": left},
        doctor=sentences,
    )


def test_a_sound_run_behind_damaged_ones_is_delivered(seen):
    assert seen.states["sound"] == ("KILLED", ALL)


@pytest.mark.parametrize("name", WHOLE)
def test_damage_beside_the_entries_loses_none(seen, name):
    assert seen.states[name] == ("KILLED", ALL)
    assert name not in seen.refused


@pytest.mark.parametrize("name", LINE)
def test_a_damaged_line_is_kept_and_named_and_the_others_arrive(seen, name):
    folder = seen.folders[name]
    assert seen.states[name] == ("KILLED", NOT_THE_THIRD)
    assert len(seen.refused[name]) == 1
    assert str(folder / REJECTED_FILE) in seen.said
    assert seen.files[name] == []


@pytest.mark.parametrize("name", SURROGATES)
def test_what_utf_8_cannot_say_arrives_as_a_replacement(seen, name):
    assert seen.states[name] == ("KILLED", NOT_THE_THIRD)
    data = seen.runs[name].data
    assert any(sign in json.dumps([data.params, data.tags], ensure_ascii=False) for sign in ("\ufffd", "t_"))
    assert name not in seen.refused


@pytest.mark.parametrize("name", HOPELESS)
def test_a_folder_that_cannot_be_read_is_set_aside_and_named(seen, name):
    folder = seen.folders[name]
    kept = seen.damaged[folder.name]
    assert not folder.exists()
    assert str(kept) in seen.said
    assert kept.name in seen.doctor[1]


def test_nothing_is_left_and_nothing_is_said_twice(seen):
    assert seen.left == {}
    assert seen.again == ""
    assert len(seen.damaged) == len(HOPELESS)


def test_a_run_that_nobody_knows_is_set_aside(client, capsys):
    stranger = dead_run(client)
    client.delete_run(stranger.name)
    stranger = stranger.rename(stranger.with_name("f" * 32))
    (stranger / "run.json").unlink()
    deliver_both(client, lambda folder: None)
    [kept] = tracking.damaged_folder().iterdir()
    assert len((kept / "journal.jsonl").read_text().splitlines()) == len(ALL)
    assert "run.json cannot be read: No such file or directory" in capsys.readouterr().err


def test_a_folder_of_another_server_that_is_gone_stops_nobody(client, capsys):
    folder = deliver_both(client, damage.metadata(uri="http://127.0.0.1:9"))
    assert tracking.undelivered_runs()[folder.name] >= len(ALL)
    assert "http://127.0.0.1:9 does not accept what earlier runs left to deliver" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["nonsense://x", "nonsense", "sqlite:////dev/null/folder/x.db", "\0"])
def test_a_folder_of_a_server_that_cannot_be_stops_nobody(client, uri):
    folder = deliver_both(client, damage.metadata(uri=uri))
    assert tracking.undelivered_runs()[folder.name] >= len(ALL)


def test_a_run_whose_experiment_was_deleted_waits_and_stops_nobody(client, capsys):
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    tags = {"compression.key": "a" * 32}
    make = {"experiment": gone, "name": None, "tags": tags, "start": 1}
    folder = deliver_both(client, damage.metadata(id="", experiment=gone, make=make))
    assert "active" in capsys.readouterr().err
    client.restore_experiment(gone)
    tracking.sync()
    [made] = client.search_runs([gone])
    assert state(client, made.info.run_id) == ("KILLED", ALL)
    assert not (folder / "journal.jsonl").exists()


def test_random_damage_loses_no_line_but_those_it_hits(client):
    """Whatever bytes are hit, in whatever file: the neighbour arrives, and what arrives is what was written."""
    chance = random.Random(4)
    for _ in range(8):
        folder = deliver_both(client, lambda folder: spoil_bytes(folder, chance))
        status, steps = state(client, folder.name)
        assert status == "KILLED" or not folder.exists()
        assert set(steps) <= set(ALL)
        values = {point.step: point.value for point in client.get_metric_history(folder.name, "m")}
        assert len(values) >= len(ALL) - 2 or not folder.exists()


def spoil_bytes(folder, chance):
    """Overwrite up to 20 bytes at a random place of a random file."""
    (folder / "delivered").write_text("0")
    path = folder / chance.choice(["journal.jsonl", "run.json", "delivered"])
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    for place in range(start, min(len(content), start + chance.randint(1, 20))):
        content[place] = chance.randrange(256)
    path.write_bytes(content)


def test_ordinary_runs_may_say_what_is_not_utf_8(client, tmp_path):
    odd = "caf\udce9"  # as Python reads a name of Latin-1 in a UTF-8 locale
    (tmp_path / os.fsdecode(os.fsencode(odd))).write_text("x")
    with tracking.start_run(odd, {"stage": odd}) as run:
        run.params({odd: odd})
        run.metrics({"m": 1.0, odd: 1.0})
        run.tag(odd, odd)
        run.note(odd)
        run.dataset(odd, odd, odd, odd)
        run.table(odd, [{odd: odd}])
        run.artifact(tmp_path / odd)
        with run.child(odd, {odd: odd}) as child:
            child.metrics({"m": 1.0})
    assert state(client, run.id)[0] == state(client, child.id)[0] == "FINISHED"
    assert len(client.list_artifacts(run.id)) == 2
    assert client.get_run(run.id).data.params == {"caf_": "caf\N{REPLACEMENT CHARACTER}"}
    assert tracking.undelivered_runs() == {}
    assert tracking_uri().startswith("sqlite")
