"""Rendering of pages, and the context of a request: its visitor, the database session, the study."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from compression.reporting.report import format_number
from compression.study import database, texts
from compression.study.questionnaires import MAX_TEXT
from compression.study.texts import StudyError, localize, translate
from compression.study.web import forms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request
    from sqlalchemy.orm import Session

    from compression.study.definition import Study
    from compression.study.tables import Participant
    from compression.study.web.access import Access, Visitor

WEB_FOLDER = Path(__file__).parent
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(WEB_FOLDER / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    # a name that no page was given is an error, not an empty text
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.globals.update(
    translate=translate, localize=localize, number=format_number, languages=texts.LANGUAGES, max_text=MAX_TEXT
)


class RedirectError(Exception):
    """The visitor has to go to the page `path` first."""

    def __init__(self, path: str):
        super().__init__(path)
        self.path = path


@dataclass(frozen=True)
class Visit:
    """A request of a logged-in visitor, with a database session."""

    request: Request
    visitor: Visitor
    session: Session
    invited: Participant | None  # None for a researcher, or a user who was not invited

    @property
    def study(self) -> Study:
        """The study in force."""
        return database.load_study(self.session)

    @property
    def participant(self) -> Participant:
        """The participant, who has consented.

        Raises RedirectError for a researcher and before consent, StudyError for a user who was not invited.
        """
        if self.invited is None:
            if self.visitor.researcher:
                raise RedirectError("/people")
            raise StudyError("not_invited", login=self.visitor.login)
        if self.invited.consented is None:
            raise RedirectError("/consent")
        return self.invited


def get_access(request: Request) -> Access:
    """Return who may visit the app."""
    access: Access = request.app.state.access
    return access


@contextlib.contextmanager
def open_visit(request: Request) -> Iterator[Visit]:
    """Yield the visit of a request. Raises RedirectError to the login if nobody is logged in."""
    access = get_access(request)
    visitor = access.visitor(request)
    if visitor is None:
        raise RedirectError("/login")
    with database.open_session() as session:
        yield Visit(request, visitor, session, access.participant(session, visitor))


@contextlib.contextmanager
def open_researcher_visit(request: Request) -> Iterator[Visit]:
    """Yield the visit of a researcher. Raises StudyError for anybody else."""
    with open_visit(request) as visit:
        if not visit.visitor.researcher:
            raise StudyError("researchers_only")
        yield visit


def consenting_id(request: Request) -> str:
    """Return the participant's id, without keeping a database session open during longer work.

    Raises like `Visit.participant`.
    """
    with open_visit(request) as visit:
        return visit.participant.id


def flash(request: Request, sentence: str) -> None:
    """Show `sentence` on the next page."""
    request.session["flash"] = sentence


def render_page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Render a template; all values are escaped."""
    access = get_access(request)
    html = TEMPLATES.get_template(template).render(
        request=request,
        visitor=access.visitor(request),
        local=access.is_local,
        language=texts.language.get(),
        csrf=forms.csrf_token(request),
        flash=request.session.pop("flash", ""),
        **values,
    )
    return HTMLResponse(html, status)


def redirect(path: str) -> Response:
    """Redirect with status 303, so that reloading the next page does not submit the form again."""
    return RedirectResponse(path, 303)
