"""What a run records of the study it belongs to. An unavailable study never fails a run: the run warns instead."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil

from compression.errors import UserError
from compression.runs.observer import Observer
from compression.study import database, participant_runs, participants, stages
from compression.study.participant_runs import STAGE_TAG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compression.tracking import Run

METHOD_HOURS_TAG = "participant.method_hours"


class StudyObserver(Observer):
    """Tags runs with the current stage of their participant and with the hours spent on their method."""

    def started(self, run: Run, participant: str) -> None:
        """Tag the run with the stage that `participant` is in; no effect without a study or a participant."""
        if not participant or not database.exists():
            return
        with _warn_on_error(run), database.open_session() as session:
            stage = stages.current(session, participants.find(session, participant))
            if stage is not None:
                run.tag(STAGE_TAG, stage.name)

    def ended(self, run: Run, participant: str, method: str) -> None:
        """Tag the run with the hours that all runs of `method` took, this process included."""
        if not participant:
            return
        with _warn_on_error(run):
            runs = participant_runs.load_runs(participant)
            earlier = [r.interval for r in runs if r.method == method and r.id != run.id and not r.is_child]
            # From the start of the process, as other runs' recorded hours: imports come before the run itself.
            process_start = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
            hours = participant_runs.covered_hours([*filter(None, earlier), (process_start, datetime.now(UTC))])
            run.tag(METHOD_HOURS_TAG, f"{hours:.6f}")


@contextlib.contextmanager
def _warn_on_error(run: Run) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        run.warn(str(error))
