"""Participants: invited by a researcher, assigned in balance, and asked for their consent before anything else."""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from compression.study import store
from compression.study.definition import NAME
from compression.study.tables import Participant, now
from compression.study.texts import LANGUAGES, Refused, pick


def invite(
    opened: Session, id: str, background: str, language: str = "en", assignment: str = "", login: str = ""
) -> Participant:
    """A new participant; the assignment that is the rarest within the background, unless one is named."""
    study = store.study(opened)
    if not re.match(NAME, id) or len(id) > 40:
        raise Refused("bad_id", id=id)
    if opened.get(Participant, id) or _with_login(opened, login or id):
        raise Refused("id_taken", id=id)
    _require("background", background, study.backgrounds)
    _require("language", language, LANGUAGES)
    if assignment:
        _require("assignment", assignment, study.assignments)
    chosen = assignment or rarest(opened, background, list(study.assignments))
    pseudonym = f"P-{secrets.token_hex(4)}"  # drawn, not derived: an id cannot be guessed back from it
    made = Participant(
        id=id, pseudonym=pseudonym, login=login or id, background=background, assignment=chosen, language=language
    )
    opened.add(made)
    opened.flush()
    return made


def _require(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise Refused("unknown_value", what=what, value=value, known=", ".join(known))


def rarest(opened: Session, background: str, assignments: list[str]) -> str:
    """The assignment fewest people of this background have; among equals, the rarest of all, then the first."""
    everybody = opened.execute(select(Participant.assignment, Participant.background)).all()
    overall = Counter(assignment for assignment, _ in everybody)
    alike = Counter(assignment for assignment, of in everybody if of == background)
    return min(assignments, key=lambda name: (alike[name], overall[name], assignments.index(name)))


def consent(opened: Session, person: Participant) -> None:
    """Keep that `person` agreed, when, and to which text; agreeing twice changes nothing."""
    if person.consented is None:
        person.consented, person.consent = now(), pick(store.study(opened).consent)


def everybody(opened: Session) -> list[Participant]:
    return list(opened.scalars(select(Participant).order_by(Participant.id)))


def find(opened: Session, id: str) -> Participant:
    """The participant `id`; refused if nobody goes by it."""
    found = opened.get(Participant, id)
    if found is None:
        raise Refused("nobody", id=id)
    return found


def of_login(opened: Session, login: str) -> Participant | None:
    return _with_login(opened, login)


def _with_login(opened: Session, login: str) -> Participant | None:
    return opened.scalars(select(Participant).where(Participant.login == login)).first()


def consenting(opened: Session, id: str) -> Participant:
    """The participant `id`, who has agreed to take part; refused before that."""
    person = find(opened, id)
    if person.consented is None:
        raise Refused("consent_first")
    return person


def named(given: str) -> str:
    """The id a command is about: as given, or COMPRESSION_PARTICIPANT."""
    id = given or os.environ.get("COMPRESSION_PARTICIPANT", "")
    if not id:
        raise Refused("who")
    return id
