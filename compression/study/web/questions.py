"""Questionnaires as forms; what cannot be kept comes back with what is wrong beside each question."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from compression.study import questionnaires, stages
from compression.study.questionnaires import Unanswered
from compression.study.texts import pick, say
from compression.study.web.forms import Form, Sent
from compression.study.web.pages import Visit, page, tell, to, visit

router = APIRouter(prefix="/questionnaires")


@router.get("/{name}")
def show(request: Request, name: str) -> Response:
    with visit(request) as found:
        stage, _ = questionnaires.find(found.opened, name)
        stages.require_open(found.opened, found.person, stage)
        kept = questionnaires.versions(found.opened, found.person, name)
        return form_page(found, name, filled_in(kept[-1].content if kept else {}), {}, 200)


def filled_in(content: dict[str, Any]) -> Form:
    """Answers that were kept, as the form that sent them."""
    lists = {
        name: value if isinstance(value, list) else [value] for name, value in content.items() if value is not None
    }
    return Form({name: [str(value) for value in values] for name, values in lists.items()})


def form_page(found: Visit, name: str, given: Form, problems: dict[str, str], status: int) -> Response:
    """The form with what was given so far."""
    _, asked = questionnaires.find(found.opened, name)
    versions = questionnaires.versions(found.opened, found.person, name)
    values = {"asked": asked, "name": name, "given": given, "problems": problems, "versions": versions}
    return page(found.request, "questionnaire.html", status, **values)


@router.post("/{name}")
def answer(request: Request, name: str, form: Sent) -> Response:
    with visit(request) as found:
        try:
            version = questionnaires.answer(found.opened, found.person, name, form)
        except Unanswered as refusal:
            problems = {question: str(problem) for question, problem in refusal.problems.items()}
            return form_page(found, name, form, problems, 422)
        _, asked = questionnaires.find(found.opened, name)
        tell(request, say("answered", title=pick(asked.title), version=version))
    return to("/")


@router.post("/{name}/receipt")
def take_receipt(request: Request, name: str, form: Sent) -> Response:
    with visit(request) as found:
        version = questionnaires.hand_receipt(found.opened, found.person, name, form.one("receipt"))
        _, asked = questionnaires.find(found.opened, name)
        tell(request, say("answered", title=pick(asked.title), version=version))
    return to("/")
