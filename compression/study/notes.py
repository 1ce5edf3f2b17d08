"""What participants write: a journal of notes, and the technique they prefer for each situation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from compression.study import database
from compression.study.questionnaires import MAX_TEXT
from compression.study.tables import Note, Preference
from compression.study.texts import StudyError, localize, translate

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from compression.study.tables import Participant


def add_note(session: Session, participant: Participant, text: str, run: str = "") -> Note:
    """Save a note in Markdown, optionally about the run with the id `run`.

    Raises StudyError if it is empty or longer than MAX_TEXT.
    """
    note = Note(participant=participant.id, text=_validate_text(text, "note"), run=run.strip()[:64])
    session.add(note)
    session.flush()
    return note


def list_notes(session: Session, participant: Participant) -> list[Note]:
    """Return a participant's notes, oldest first."""
    return list(session.scalars(select(Note).where(Note.participant == participant.id).order_by(Note.id)))


def format_journal(notes: list[Note]) -> str:
    """Return the notes as one Markdown text, each under a heading with its time and run."""
    return "\n".join(
        f"## {note.at:%Y-%m-%d %H:%M} UTC{f' · run {note.run}' if note.run else ''}\n\n{note.text}\n" for note in notes
    )


def add_preference(session: Session, participant: Participant, situation: str, technique: str, why: str) -> Preference:
    """Save the preferred technique for a situation; an earlier preference for it is superseded, but not deleted.

    Raises StudyError if the technique is unknown, or a text is empty or longer than MAX_TEXT.
    """
    techniques = database.load_study(session).techniques
    if technique not in techniques:
        known = ", ".join(techniques)
        raise StudyError("unknown_value", what=translate("technique"), value=technique[:40], known=known)
    preference = Preference(
        participant=participant.id,
        technique=technique,
        situation=_validate_text(situation, "situation"),
        why=_validate_text(why, "why"),
    )
    session.add(preference)
    session.flush()
    return preference


def current_preferences(session: Session, participant: Participant) -> list[Preference]:
    """Return the newest preference for each situation, in the order in which the situations were first named."""
    query = select(Preference).where(Preference.participant == participant.id).order_by(Preference.id)
    return list({preference.situation: preference for preference in session.scalars(query)}.values())


def technique_title(session: Session, preference: Preference) -> str:
    """Return the title of the preferred technique; its name if the study no longer has it."""
    title = database.load_study(session).techniques.get(preference.technique)
    return localize(title) if title else preference.technique


def _validate_text(text: str, field: str) -> str:
    """Strip `text`; errors name the field by its key of `texts.yaml`."""
    stripped = text.strip()
    if not stripped:
        raise StudyError("words_missing", what=translate(field))
    if len(stripped) > MAX_TEXT:
        raise StudyError("too_long", question=translate(field), most=MAX_TEXT, length=len(stripped))
    return stripped
