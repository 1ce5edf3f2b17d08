"""What a run says of the study it belongs to. A study that is away never fails a run: the run warns instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlalchemy import make_url

from compression.errors import UserError
from compression.runs.observer import Observer
from compression.study import people, runs, stages, store
from compression.study.runs import STAGE
from compression.tracking import Run

TOTAL = "participant.method_hours"


class StudyObserver(Observer):
    """Tags runs with the stage of the study that they fall in, and with the hours their participant has spent."""

    def started(self, run: Run, participant: str) -> None:
        """Tag the run with the stage its participant is in; nothing where there is no study here."""
        if not participant or not takes_place_here():
            return
        with _warned_of(run), store.session() as opened:
            stage = stages.current(opened, people.find(opened, participant))
            if stage is not None:
                run.tag(STAGE, stage.name)

    def ended(self, run: Run, participant: str, method: str) -> None:
        """Tag the run with the hours spent on `method` in runs so far, this one included."""
        if not participant:
            return
        with _warned_of(run):
            earlier = [r for r in runs.of_person(participant) if r.method == method and r.id != run.id]
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
