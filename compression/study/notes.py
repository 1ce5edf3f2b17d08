"""A participant's own words: a journal beside the runs, and which technique they prefer for what, and why."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from compression.study import store
from compression.study.questionnaires import MAX_TEXT
from compression.study.tables import Note, Participant, Preference
from compression.study.texts import Refused, pick, say


def add(opened: Session, person: Participant, text: str, run: str = "") -> Note:
    """Keep a note in Markdown, about the run with this id if one is named."""
    note = Note(participant=person.id, text=_checked(text, "note"), run=run.strip()[:64])
    opened.add(note)
    opened.flush()
    return note


def journal(opened: Session, person: Participant) -> list[Note]:
    return list(opened.scalars(select(Note).where(Note.participant == person.id).order_by(Note.id)))


def markdown(notes: list[Note]) -> str:
    """The journal as one Markdown text, a heading for every note."""
    return "\n".join(
        f"## {note.at:%Y-%m-%d %H:%M} UTC{f' · run {note.run}' if note.run else ''}\n\n{note.text}\n" for note in notes
    )


def prefer(opened: Session, person: Participant, situation: str, technique: str, why: str) -> Preference:
    """Keep which technique is preferred for a situation; what was said of the same situation before stays below."""
    techniques = store.study(opened).techniques
    if technique not in techniques:
        raise Refused("unknown_value", what=say("technique"), value=technique[:40], known=", ".join(techniques))
    said = {"situation": _checked(situation, "situation"), "why": _checked(why, "why")}
    preference = Preference(participant=person.id, technique=technique, **said)
    opened.add(preference)
    opened.flush()
    return preference


def preferences(opened: Session, person: Participant) -> list[Preference]:
    """The newest preference for each situation, in the order the situations came up."""
    asked = select(Preference).where(Preference.participant == person.id).order_by(Preference.id)
    return list({kept.situation: kept for kept in opened.scalars(asked)}.values())


def shown(opened: Session, preference: Preference) -> str:
    """The preferred technique in words."""
    named = store.study(opened).techniques.get(preference.technique)
    return pick(named) if named else preference.technique


def _checked(text: str, what: str) -> str:
    kept = text.strip()
    if not kept:
        raise Refused("words_missing", what=say(what))
    if len(kept) > MAX_TEXT:
        raise Refused("too_long", question=say(what), most=MAX_TEXT, length=len(kept))
    return kept
