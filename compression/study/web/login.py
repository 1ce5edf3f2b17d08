"""Pages before taking part: login, language, consent; and the health check."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response

from compression.study import database, participants, texts
from compression.study.texts import StudyError, localize
from compression.study.web import device, sessions
from compression.study.web.access import LocalAccess
from compression.study.web.forms import SubmittedForm, read_form
from compression.study.web.pages import get_access, open_visit, redirect, render_page

router = APIRouter()
STATUS_OF_REFUSAL = {"wrong_login": 403, "login_brake": 429}


@router.get("/health")
def health() -> Response:
    """Answer OK if the database does."""
    with database.open_session() as session:
        database.latest_definition(session)
    return PlainTextResponse("OK")


@router.get("/login")
def show_login(request: Request) -> Response:
    """Show the login form."""
    return render_page(request, "login.html", problem="", login="")


@router.post("/login")
def log_in(request: Request, form: SubmittedForm) -> Response:
    """Log in a user of the MLflow server, with a new session, so that nothing of an earlier visitor remains."""
    access = get_access(request)
    if isinstance(access, LocalAccess):
        return redirect("/")
    login, address = form.first("login"), request.client.host if request.client else ""
    try:
        visitor = access.log_in(login, form.first("password"), address, device.find(request, login))
    except StudyError as error:
        status = STATUS_OF_REFUSAL.get(error.key, 503)
        return render_page(request, "login.html", status, problem=str(error), login=login)
    with database.open_session() as session:
        participant = participants.find_by_login(session, visitor.login)
    request.session.clear()
    request.session.update(login=visitor.login, researcher=visitor.researcher, token=sessions.begin())
    if participant is not None:
        request.session["language"] = participant.language
    response = redirect("/")
    device.remember(request, response, login)
    return response


@router.post("/logout", dependencies=[Depends(read_form)])
def log_out(request: Request) -> Response:
    """End the session, also for a copy of its cookie."""
    sessions.end(request.session.get("token", ""))
    request.session.clear()
    return redirect("/login")


@router.post("/language")
def choose_language(request: Request, form: SubmittedForm) -> Response:
    """Set the language of this session and, for a participant, of later ones."""
    code = form.first("language")
    if code not in texts.LANGUAGES:
        raise StudyError("no_page")
    request.session["language"] = code
    if get_access(request).visitor(request) is not None:
        with open_visit(request) as visit:
            if visit.invited is not None:
                visit.invited.language = code
    back = form.first("back")
    is_own_path = back.startswith("/") and not back.startswith(("//", "/\\"))  # `//host` leads to another site
    return redirect(back if is_own_path else "/")


@router.get("/consent")
def show_consent(request: Request) -> Response:
    """Show the consent text, and the form to agree to it."""
    with open_visit(request) as visit:
        given = visit.invited is not None and visit.invited.consented is not None
        return render_page(request, "consent.html", text=localize(visit.study.consent), given=given)


@router.post("/consent")
def consent(request: Request, form: SubmittedForm) -> Response:
    """Record the participant's consent."""
    if form.first("agree") != "yes":
        raise StudyError("consent_first")
    with open_visit(request) as visit:
        if visit.invited is None:
            raise StudyError("not_invited", login=visit.visitor.login)
        participants.record_consent(visit.session, visit.invited)
    return redirect("/")
