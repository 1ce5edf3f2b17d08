"""Folders with damage of every kind and at random places, sound ones between them."""

import contextlib
import io
import random

import pytest
from mlflow import MlflowClient

from compression import tracking
from compression.tracking import store as sqlite_store
from tests.tracking.damage import ALL, HOPELESS, LINE, NOT_THE_THIRD, SURROGATES, WHOLE, dead_run, state
from tests.tracking.test_damage import spoil_bytes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_damaged_journals(store, tally):
    """Of a damaged folder, a line that was not hit is lost; of a sound one, anything."""
    drawn = 50
    sqlite_store.make_whole(store / "mlflow.db")
    client, chance = MlflowClient(), random.Random(2)
    kinds = [(name, spoil, ALL) for name, spoil in WHOLE.items()]
    kinds += [(name, spoil, NOT_THE_THIRD) for name, spoil in (LINE | SURROGATES).items()]
    kinds += [(name, spoil, []) for name, spoil in HOPELESS.items()]
    kinds += [(f"random {n}", lambda folder: spoil_bytes(folder, chance), []) for n in range(drawn)]
    folders, sound = [], []
    for number, (_, spoil, _) in enumerate(kinds):
        folders.append(dead_run(client))
        spoil(folders[-1])
        if number % 10 == 9:
            sound.append(dead_run(client))
    with contextlib.redirect_stderr(io.StringIO()):
        tracking.sync()
    lost = sum(state(client, folder.name) != ("KILLED", ALL) for folder in sound)
    lost += sum(
        not set(steps) <= set(state(client, folder.name)[1])
        for (_, _, steps), folder in zip(kinds, folders, strict=True)
    )
    set_aside = {path.name.split("-")[0] for path in tracking.damaged_folder().glob("*")}
    stuck = len(tracking.undelivered_runs())
    stuck += sum(state(client, folder.name)[0] == "RUNNING" and folder.name not in set_aside for folder in folders)
    tally("damaged journals", tried=len(kinds), lost=lost, stuck=stuck)
