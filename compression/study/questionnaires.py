"""Answers to questionnaires: validated question by question, and saved as a new version each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from compression.study import database, stages
from compression.study.tables import Answers
from compression.study.texts import StudyError, localize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from compression.study.definition import Question, Questionnaire, Stage
    from compression.study.tables import Participant

Answer = str | int | list[str] | None  # a choice or text, a point of a scale, several choices, or none

COLUMNS = ("participant", "questionnaire", "version", "answered", "question", "answer")
MAX_TEXT = 10_000  # characters of one answer; a longer text was pasted by accident
MAX_RECEIPT = 500  # characters


class InvalidAnswersError(StudyError):
    """Some answers are missing or invalid; `problems` has the error of each question. Its sentence is the first."""

    def __init__(self, problems: dict[str, StudyError]):
        first = next(iter(problems.values()))
        super().__init__(first.key, **first.values)
        self.problems = problems


def find_questionnaire(session: Session, name: str) -> tuple[Stage, Questionnaire]:
    """Return the questionnaire `name` and its stage. Raises StudyError with the known names if there is none."""
    study = database.load_study(session)
    for stage in study.stages:
        if stage.questionnaire == name:
            return stage, study.questionnaires[name]
    known = ", ".join(stage.questionnaire for stage in study.stages if stage.questionnaire)
    raise StudyError("no_questionnaire", name=name, known=known)


def parse_answers(questionnaire: Questionnaire, submitted: Mapping[str, Sequence[str]]) -> dict[str, Answer]:
    """Parse the submitted texts of each question. Raises InvalidAnswersError if any is missing or invalid."""
    answers: dict[str, Answer] = {}
    problems: dict[str, StudyError] = {}
    for question in questionnaire.questions:
        texts = [text.strip() for text in submitted.get(question.name, []) if text.strip()]
        try:
            answers[question.name] = parse_answer(question, texts)
        except StudyError as error:
            problems[question.name] = error
    if problems:
        raise InvalidAnswersError(problems)
    return answers


def parse_answer(question: Question, texts: Sequence[str]) -> Answer:
    """Parse the submitted texts of one question, without blanks; None if it was left out.

    Raises StudyError if a required answer is missing, a choice is unknown, or a text is longer than MAX_TEXT.
    """
    title = localize(question.text)
    if not texts:
        if question.required:
            raise StudyError("answer_missing", question=title)
        return None
    if question.kind == "multiple":
        # A choice that was sent twice counts once.
        return list(dict.fromkeys(_parse_choice(question, text) for text in texts))
    if question.kind == "single":
        return _parse_choice(question, texts[0])
    if question.kind == "scale":
        return _parse_scale(question, texts[0])
    if len(texts[0]) > MAX_TEXT:
        raise StudyError("too_long", question=title, most=MAX_TEXT, length=len(texts[0]))
    return texts[0]


def _parse_choice(question: Question, text: str) -> str:
    if text not in question.choices:
        known = ", ".join(question.choices)
        raise StudyError("no_choice", question=localize(question.text), value=text[:40], known=known)
    return text


def _parse_scale(question: Question, text: str) -> int:
    # Only ASCII digits: int() also takes those of other scripts. Nine of them, as int() is slow for thousands.
    if not text.isascii() or not text.isdigit() or not question.low <= int(text[:9]) <= question.high:
        known = f"{question.low}–{question.high}"
        raise StudyError("no_choice", question=localize(question.text), value=text[:40], known=known)
    return int(text)


def append_answers(
    session: Session, participant: Participant, name: str, submitted: Mapping[str, Sequence[str]]
) -> int:
    """Save answers to the questionnaire `name`, complete its stage, and return the number of this version.

    Raises InvalidAnswersError if they are incomplete or invalid, StudyError if the questionnaire is unknown, not open
    yet, or only an external form.
    """
    stage, questionnaire = find_questionnaire(session, name)
    stages.require_open(session, participant, stage)
    if not questionnaire.questions:
        raise StudyError("outside_only", link=questionnaire.link)
    return _save_version(session, participant, stage, parse_answers(questionnaire, submitted))


def save_receipt(session: Session, participant: Participant, name: str, receipt: str) -> int:
    """Save the receipt of the external form of `name`, complete its stage, and return the number of this version.

    Raises StudyError if the questionnaire is unknown, not open yet or has no such form, or if there is no receipt.
    """
    stage, questionnaire = find_questionnaire(session, name)
    stages.require_open(session, participant, stage)
    if questionnaire.link is None:
        raise StudyError("no_link")
    if not receipt.strip() or len(receipt) > MAX_RECEIPT:
        raise StudyError("receipt_missing")
    return _save_version(session, participant, stage, {}, receipt.strip())


def _save_version(
    session: Session, participant: Participant, stage: Stage, content: dict[str, Answer], receipt: str = ""
) -> int:
    version = len(list_versions(session, participant, stage.questionnaire)) + 1
    answers = Answers(
        participant=participant.id,
        questionnaire=stage.questionnaire,
        version=version,
        definition=database.latest_definition(session).id,
        content=content,
        receipt=receipt,
    )
    try:
        with session.begin_nested():
            session.add(answers)
    except IntegrityError:  # another process has saved this version meanwhile
        raise StudyError("sent_twice") from None
    stages.complete(session, participant, stage)
    return version


def list_versions(session: Session, participant: Participant, name: str) -> list[Answers]:
    """Return all versions of a participant's answers to the questionnaire `name`, oldest first."""
    query = select(Answers).where(Answers.participant == participant.id, Answers.questionnaire == name)
    return list(session.scalars(query.order_by(Answers.version)))


def answer_records(session: Session, participants: Sequence[Participant]) -> list[dict[str, Any]]:
    """Return a table of every answer in every version, under pseudonyms; its columns are COLUMNS."""
    records = []
    for participant in sorted(participants, key=lambda p: p.pseudonym):
        query = select(Answers).where(Answers.participant == participant.id)
        for answers in session.scalars(query.order_by(Answers.questionnaire, Answers.version)):
            content = answers.content or {"receipt": answers.receipt}
            records += [_answer_record(participant, answers, *pair) for pair in content.items()]
    return records


def _answer_record(participant: Participant, answers: Answers, question: str, answer: Answer) -> dict[str, Any]:
    text = "; ".join(answer) if isinstance(answer, list) else "" if answer is None else answer
    at = answers.at.isoformat(timespec="seconds")
    values = (participant.pseudonym, answers.questionnaire, answers.version, at, question, text)
    return dict(zip(COLUMNS, values, strict=True))
