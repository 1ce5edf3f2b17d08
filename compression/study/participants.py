"""Participants: invitation with a balanced assignment, consent, and look-up."""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import select

from compression.study import database
from compression.study.definition import NAME_PATTERN
from compression.study.tables import Participant, utc_now
from compression.study.texts import LANGUAGES, StudyError, localize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

MAX_ID, MAX_LOGIN = 40, 255  # characters; MLflow keeps 255 of the name of a user


def invite(
    session: Session, participant_id: str, background: str, language: str = "en", assignment: str = "", login: str = ""
) -> Participant:
    """Add a participant; by default with the login `participant_id` and the least used assignment.

    Raises StudyError if the id is malformed, the id or login is taken, or another value is not one of the study's.
    """
    study = database.load_study(session)
    if not is_id(participant_id):
        raise StudyError("bad_id", id=participant_id)
    login = login or participant_id
    if len(login) > MAX_LOGIN or not login.isprintable():
        raise StudyError("bad_value", name="login", most=MAX_LOGIN)
    # Experiments bear the names of ids and of logins: nobody's id may be another's login.
    if any(find_by_login(session, name) or session.get(Participant, name) for name in (participant_id, login)):
        raise StudyError("id_taken", id=participant_id)
    _require_known("background", background, study.backgrounds)
    _require_known("language", language, LANGUAGES)
    if assignment:
        _require_known("assignment", assignment, study.assignments)
    participant = Participant(
        id=participant_id,
        pseudonym=f"P-{secrets.token_hex(4)}",  # random, not a hash: it cannot be traced back to the id
        login=login,
        background=background,
        assignment=assignment or least_assigned(session, background, list(study.assignments)),
        language=language,
    )
    session.add(participant)
    session.flush()
    return participant


def is_id(text: object) -> bool:
    """Whether this can be the id of a participant."""
    return isinstance(text, str) and bool(re.fullmatch(NAME_PATTERN, text)) and len(text) <= MAX_ID


def _require_known(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise StudyError("unknown_value", what=field, value=value, known=", ".join(known))


def least_assigned(session: Session, background: str, assignments: list[str]) -> str:
    """Return the assignment that the fewest participants of this background have.

    Ties go to the one with the fewest participants of any background, then to the first in the study.
    """
    pairs = session.execute(select(Participant.assignment, Participant.background)).all()
    overall = Counter(assignment for assignment, _ in pairs)
    within = Counter(assignment for assignment, of in pairs if of == background)
    # Balanced within each background first: hours are compared between backgrounds.
    return min(assignments, key=lambda name: (within[name], overall[name], assignments.index(name)))


def record_consent(session: Session, participant: Participant) -> None:
    """Record that `participant` has consented, when, and to which text; a second consent changes nothing."""
    if participant.consented is None:
        participant.consented, participant.consent = utc_now(), localize(database.load_study(session).consent)


def list_participants(session: Session) -> list[Participant]:
    """Return everybody who was invited, in the order of their ids."""
    return list(session.scalars(select(Participant).order_by(Participant.id)))


def list_consenting(session: Session) -> list[Participant]:
    """Return everybody who has consented, in the order of their pseudonyms, which does not reveal that of the ids."""
    return sorted((p for p in list_participants(session) if p.consented), key=lambda p: p.pseudonym)


def find(session: Session, participant_id: str) -> Participant:
    """Return the participant `participant_id`. Raises StudyError if there is none."""
    participant = session.get(Participant, participant_id)
    if participant is None:
        raise StudyError("nobody", id=participant_id)
    return participant


def find_by_login(session: Session, login: str) -> Participant | None:
    """Return the participant with this login at the tracking server; None if there is none."""
    return session.scalars(select(Participant).where(Participant.login == login)).first()


def find_consenting(session: Session, participant_id: str) -> Participant:
    """Return the participant `participant_id`. Raises StudyError if there is none, or they have not consented."""
    participant = find(session, participant_id)
    if participant.consented is None:
        raise StudyError("consent_first")
    return participant


def resolve_id(participant_id: str) -> str:
    """Return `participant_id`; if it is empty, COMPRESSION_PARTICIPANT. Raises StudyError if both are empty."""
    resolved = participant_id or os.environ.get("COMPRESSION_PARTICIPANT", "")
    if not resolved:
        raise StudyError("who")
    return resolved
