"""Coming in: health, login, language, consent."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from compression.study import people, store, texts
from compression.study.texts import Refused, pick
from compression.study.web.access import Alone
from compression.study.web.forms import Sent
from compression.study.web.pages import access, page, to, visit

router = APIRouter()


@router.get("/health")
def health() -> Response:
    """Whether the app and its database answer."""
    with store.session() as opened:
        store.newest_definition(opened)
    return PlainTextResponse("OK")


@router.get("/login")
def login(request: Request) -> Response:
    return page(request, "login.html", problem="", login="")


@router.post("/login")
def enter(request: Request, form: Sent) -> Response:
    """Let in whom the MLflow server knows; a new visit begins, so that nobody else's cookie is theirs."""
    ways = access(request)
    if isinstance(ways, Alone):
        return to("/")
    try:
        visitor = ways.enter(form.one("login"), form.one("password"))
    except Refused as refusal:
        status = 403 if refusal.key == "wrong_login" else 503
        return page(request, "login.html", status, problem=str(refusal), login=form.one("login"))
    with store.session() as opened:
        person = people.of_login(opened, visitor.login)
    request.session.clear()
    request.session.update(login=visitor.login, researcher=visitor.researcher)
    if person is not None:
        request.session["language"] = person.language
    return to("/")


@router.post("/logout")
def leave(request: Request, form: Sent) -> Response:
    request.session.clear()
    return to("/login")


@router.post("/language")
def speak(request: Request, form: Sent) -> Response:
    """Choose the language, for this visit and, of a participant, for good."""
    code = form.one("language")
    if code not in texts.LANGUAGES:
        raise Refused("no_page")
    request.session["language"] = code
    if access(request).visitor(request) is not None:
        with visit(request) as found:
            if found.participant is not None:
                found.participant.language = code
    back = form.one("back")
    return to(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/")


@router.get("/consent")
def show_consent(request: Request) -> Response:
    with visit(request) as found:
        given = found.participant is not None and found.participant.consented is not None
        return page(request, "consent.html", text=pick(found.study.consent), given=given)


@router.post("/consent")
def consent(request: Request, form: Sent) -> Response:
    if form.one("agree") != "yes":
        raise Refused("consent_first")
    with visit(request) as found:
        if found.participant is None:
            raise Refused("not_invited", login=found.visitor.login)
        people.consent(found.opened, found.participant)
    return to("/")
