"""The stages in their order: what is done, what is open, and what comes first."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from compression.study import store
from compression.study.definition import Stage
from compression.study.tables import Participant, StageDone
from compression.study.texts import Refused, pick


def done(opened: Session, person: Participant) -> set[str]:
    """The names of the stages that `person` has completed."""
    return set(opened.scalars(select(StageDone.stage).where(StageDone.participant == person.id)))


def current(opened: Session, person: Participant) -> Stage | None:
    """The first stage that is not done; None after the last."""
    finished = done(opened, person)
    return next((stage for stage in store.study(opened).stages if stage.name not in finished), None)


def require_open(opened: Session, person: Participant, stage: Stage) -> None:
    """Refuse, naming what comes first, unless `stage` is the current one or lies before it."""
    now = current(opened, person)
    order = [s.name for s in store.study(opened).stages]
    if now is not None and order.index(stage.name) > order.index(now.name):
        raise Refused("not_open", stage=pick(stage.title), first=pick(now.title), name=now.name)


def complete(opened: Session, person: Participant, stage: Stage) -> None:
    """Mark `stage` as done; once more changes nothing."""
    require_open(opened, person, stage)
    if stage.name not in done(opened, person):
        opened.add(StageDone(participant=person.id, stage=stage.name))
        opened.flush()


def finish_work(opened: Session, person: Participant, name: str = "") -> Stage:
    """Complete a stage of work (the current one, unless named); a questionnaire and the hand-in end by themselves."""
    stage = store.study(opened).stage(name) if name else current(opened, person)
    if stage is None:
        raise Refused("all_done")
    require_open(opened, person, stage)
    if not stage.rows:
        raise Refused("ends_by_itself", stage=pick(stage.title))
    complete(opened, person, stage)
    return stage
