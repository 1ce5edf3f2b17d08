"""Progress through the stages, which open in their order."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from compression.study import database
from compression.study.tables import CompletedStage
from compression.study.texts import StudyError, localize

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from compression.study.definition import Stage
    from compression.study.tables import Participant


def completed(session: Session, participant: Participant) -> set[str]:
    """Return the names of the stages that `participant` has completed."""
    return set(session.scalars(select(CompletedStage.stage).where(CompletedStage.participant == participant.id)))


def current(session: Session, participant: Participant) -> Stage | None:
    """Return the first stage that is not completed; None after the last."""
    completed_names = completed(session, participant)
    stages = database.load_study(session).stages
    return next((stage for stage in stages if stage.name not in completed_names), None)


def require_open(session: Session, participant: Participant, stage: Stage) -> None:
    """Raise StudyError unless `stage` is the current one or an earlier one."""
    active = current(session, participant)
    order = [s.name for s in database.load_study(session).stages]
    if active is not None and order.index(stage.name) > order.index(active.name):
        raise StudyError("not_open", stage=localize(stage.title), first=localize(active.title), name=active.name)


def complete(session: Session, participant: Participant, stage: Stage) -> None:
    """Mark `stage` as completed; no effect if it is already. Raises StudyError if it is not open yet."""
    require_open(session, participant, stage)
    if stage.name not in completed(session, participant):
        # A savepoint: of two at once, the second finds the stage completed, and loses nothing else it did.
        with suppress(IntegrityError), session.begin_nested():
            session.add(CompletedStage(participant=participant.id, stage=stage.name))


def finish_work(session: Session, participant: Participant, name: str = "") -> Stage:
    """Complete the stage of work `name`, by default the current one, and return it.

    Raises StudyError if the stage is unknown, not open yet, or one that is completed by an answer or by the hand-in.
    """
    stage = database.load_study(session).stage(name) if name else current(session, participant)
    if stage is None:
        raise StudyError("all_done")
    require_open(session, participant, stage)
    if not stage.rows:
        raise StudyError("ends_by_itself", stage=localize(stage.title))
    complete(session, participant, stage)
    return stage
