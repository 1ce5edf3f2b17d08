"""Questionnaires as forms; answers that are not valid come back with a message beside each question."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import Response

from compression.study import questionnaires, stages
from compression.study.questionnaires import Answer, InvalidAnswersError
from compression.study.texts import localize, translate
from compression.study.web.forms import Form, SubmittedForm
from compression.study.web.pages import Visit, flash, open_visit, redirect, render_page

router = APIRouter(prefix="/questionnaires")


@router.get("/{name}")
def show_questionnaire(request: Request, name: str) -> Response:
    """Show a questionnaire, with the latest answers if there are any."""
    with open_visit(request) as visit:
        stage, _ = questionnaires.find_questionnaire(visit.session, name)
        stages.require_open(visit.session, visit.participant, stage)
        versions = questionnaires.list_versions(visit.session, visit.participant, name)
        return _render_form(visit, name, answers_as_form(versions[-1].content if versions else {}), {}, 200)


def answers_as_form(answers: Mapping[str, Answer]) -> Form:
    """Return saved answers as the form that submitted them."""
    lists = {
        name: answer if isinstance(answer, list) else [str(answer)]
        for name, answer in answers.items()
        if answer is not None
    }
    return Form(lists)


def _render_form(visit: Visit, name: str, given: Form, problems: dict[str, str], status: int) -> Response:
    """Render the form with the values `given` and the problems by question."""
    _, questionnaire = questionnaires.find_questionnaire(visit.session, name)
    versions = questionnaires.list_versions(visit.session, visit.participant, name)
    values = {"asked": questionnaire, "name": name, "given": given, "problems": problems, "versions": versions}
    return render_page(visit.request, "questionnaire.html", status, **values)


@router.post("/{name}")
def submit_answers(request: Request, name: str, form: SubmittedForm) -> Response:
    """Save answers, or show the form again (status 422) with what is wrong."""
    with open_visit(request) as visit:
        try:
            version = questionnaires.append_answers(visit.session, visit.participant, name, form)
        except InvalidAnswersError as error:
            problems = {question: str(problem) for question, problem in error.problems.items()}
            return _render_form(visit, name, form, problems, 422)
        _flash_version(visit, name, version)
    return redirect("/")


@router.post("/{name}/receipt")
def submit_receipt(request: Request, name: str, form: SubmittedForm) -> Response:
    """Save the receipt of a questionnaire's external form."""
    with open_visit(request) as visit:
        version = questionnaires.save_receipt(visit.session, visit.participant, name, form.first("receipt"))
        _flash_version(visit, name, version)
    return redirect("/")


def _flash_version(visit: Visit, name: str, version: int) -> None:
    _, questionnaire = questionnaires.find_questionnaire(visit.session, name)
    flash(visit.request, translate("answered", title=localize(questionnaire.title), version=version))
