"""What a run says of the study it belongs to. A study that is away never fails a run: the run warns instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import psutil
from sqlalchemy import make_url

from compression.errors import UserError
from compression.study import people, runs, stages, store
from compression.study.runs import STAGE

TOTAL = "participant.method_hours"


class Run(Protocol):
    """The part of `compression.tracking.Run` that is needed here."""

    id: str

    def tag(self, name: str, value: str) -> None: ...
    def warn(self, sentence: str) -> None: ...


def tag_stage(run: Run, person: str) -> None:
    """Tag a run that begins with the stage its participant is in; nothing where there is no study here."""
    if not person or not takes_place_here():
        return
    with _warned_of(run), store.session() as opened:
        stage = stages.current(opened, people.find(opened, person))
        if stage is not None:
            run.tag(STAGE, stage.name)


def tag_total(run: Run, person: str, method: str) -> None:
    """Tag a run that ends with the hours its participant has spent on `method` in runs so far, this one included."""
    if not person:
        return
    with _warned_of(run):
        earlier = [r for r in runs.of_person(person) if r.method == method and r.id != run.id]
        began = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
        spans = [r.interval for r in earlier if not r.child]
        total = runs.union([*filter(None, spans), (began, datetime.now(UTC))])
        run.tag(TOTAL, f"{total:.6f}")


def takes_place_here() -> bool:
    """Whether there is a study's database: one that was named, or the file of this machine."""
    address = make_url(store.url())
    return address.get_backend_name() != "sqlite" or Path(address.database or "").exists()


@contextlib.contextmanager
def _warned_of(run: Run) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        run.warn(str(error))
