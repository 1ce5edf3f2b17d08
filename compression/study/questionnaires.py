"""Questionnaires: what a form sent is checked question by question, and kept as a new version each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compression.study import stages, store
from compression.study.definition import Question, Questionnaire, Stage
from compression.study.tables import Answers, Participant
from compression.study.texts import Refused, pick

COLUMNS = ("participant", "questionnaire", "version", "answered", "question", "answer")
MAX_TEXT = 10_000  # characters of one answer; more is no answer but an accident


class Unanswered(Refused):
    """Answers that cannot be kept: `problems` says for each question what is wrong."""

    def __init__(self, problems: dict[str, Refused]):
        first = next(iter(problems.values()))
        super().__init__(first.key, **first.values)
        self.problems = problems


def find(opened: Session, name: str) -> tuple[Stage, Questionnaire]:
    """The questionnaire `name` and its stage; refused with the names there are."""
    study = store.study(opened)
    for stage in study.stages:
        if stage.questionnaire == name:
            return stage, study.questionnaires[name]
    raise Refused(
        "no_questionnaire", name=name, known=", ".join(s.questionnaire for s in study.stages if s.questionnaire)
    )


def check(questionnaire: Questionnaire, given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Question -> answer from the texts a form sent; `Unanswered` if any is missing or impossible."""
    content, problems = {}, {}
    for question in questionnaire.questions:
        try:
            content[question.name] = value(question, [v.strip() for v in given.get(question.name, []) if v.strip()])
        except Refused as refusal:
            problems[question.name] = refusal
    if problems:
        raise Unanswered(problems)
    return content


def value(question: Question, given: list[str]) -> Any:
    """The answer to one question: a choice, a list of choices, a whole number or a text; None if left out."""
    about = pick(question.text)
    if not given:
        if question.required:
            raise Refused("answer_missing", question=about)
        return None
    if question.kind == "multiple":
        return list(dict.fromkeys(_choice(question, text) for text in given))
    if question.kind == "single":
        return _choice(question, given[0])
    if question.kind == "scale":
        return _mark(question, given[0])
    if len(given[0]) > MAX_TEXT:
        raise Refused("too_long", question=about, most=MAX_TEXT, length=len(given[0]))
    return given[0]


def _choice(question: Question, text: str) -> str:
    if text not in question.choices:
        raise Refused("no_choice", question=pick(question.text), value=text[:40], known=", ".join(question.choices))
    return text


def _mark(question: Question, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not question.low <= int(text[:9]) <= question.high:
        known = f"{question.low}–{question.high}"
        raise Refused("no_choice", question=pick(question.text), value=text[:40], known=known)
    return int(text)


def answer(opened: Session, person: Participant, name: str, given: Mapping[str, Sequence[str]]) -> int:
    """Keep the answers to the questionnaire `name` and complete its stage; the number of this version."""
    stage, questionnaire = find(opened, name)
    stages.require_open(opened, person, stage)
    if not questionnaire.questions:
        raise Refused("outside_only", link=questionnaire.link)
    return _keep(opened, person, stage, content=check(questionnaire, given))


def hand_receipt(opened: Session, person: Participant, name: str, receipt: str) -> int:
    """Keep that the outside form was filled in, by the receipt it gave; the number of this version."""
    stage, questionnaire = find(opened, name)
    stages.require_open(opened, person, stage)
    if questionnaire.link is None:
        raise Refused("no_link")
    if not receipt.strip() or len(receipt) > 500:
        raise Refused("receipt_missing")
    return _keep(opened, person, stage, content={}, receipt=receipt.strip())


def _keep(opened: Session, person: Participant, stage: Stage, **said: Any) -> int:
    version = len(versions(opened, person, stage.questionnaire)) + 1
    kept = Answers(
        participant=person.id,
        questionnaire=stage.questionnaire,
        version=version,
        definition=store.newest_definition(opened).id,
        **said,
    )
    try:
        with opened.begin_nested():
            opened.add(kept)
    except IntegrityError:
        raise Refused("sent_twice") from None
    stages.complete(opened, person, stage)
    return version


def versions(opened: Session, person: Participant, name: str) -> list[Answers]:
    """Every version of somebody's answers to a questionnaire, oldest first."""
    asked = select(Answers).where(Answers.participant == person.id, Answers.questionnaire == name)
    return list(opened.scalars(asked.order_by(Answers.version)))


def rows(opened: Session, people: Sequence[Participant]) -> list[dict[str, Any]]:
    """A row for every answer to every question in every version, under pseudonyms."""
    made = []
    for person in sorted(people, key=lambda p: p.pseudonym):
        asked = select(Answers).where(Answers.participant == person.id).order_by(Answers.questionnaire, Answers.version)
        for kept in opened.scalars(asked):
            said = kept.content or {"receipt": kept.receipt}
            made += [_row(person, kept, question, answer) for question, answer in said.items()]
    return made


def _row(person: Participant, kept: Answers, question: str, answer: Any) -> dict[str, Any]:
    shown = "; ".join(answer) if isinstance(answer, list) else "" if answer is None else answer
    at = kept.at.isoformat(timespec="seconds")
    return dict(zip(COLUMNS, (person.pseudonym, kept.questionnaire, kept.version, at, question, shown), strict=True))
