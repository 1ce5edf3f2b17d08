"""Pages and the visit they are made for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from compression.reporting.report import format_number
from compression.study import store, texts
from compression.study.definition import Study
from compression.study.questionnaires import MAX_TEXT
from compression.study.tables import Participant
from compression.study.texts import Refused, pick, say
from compression.study.web import forms
from compression.study.web.access import Access, Visitor

FOLDER = Path(__file__).parent
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
ENVIRONMENT.globals.update(say=say, pick=pick, number=format_number, languages=texts.LANGUAGES, max_text=MAX_TEXT)


class Elsewhere(Exception):
    """The visitor belongs on another page first."""

    def __init__(self, path: str):
        super().__init__(path)
        self.path = path


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is let in, with the study open."""

    request: Request
    visitor: Visitor
    opened: Session
    participant: Participant | None

    @property
    def study(self) -> Study:
        return store.study(self.opened)

    @property
    def person(self) -> Participant:
        """The participant, who has consented; anybody else is sent where they belong."""
        if self.participant is None:
            if self.visitor.researcher:
                raise Elsewhere("/people")
            raise Refused("not_invited", login=self.visitor.login)
        if self.participant.consented is None:
            raise Elsewhere("/consent")
        return self.participant


def access(request: Request) -> Access:
    return request.app.state.access


@contextlib.contextmanager
def visit(request: Request) -> Iterator[Visit]:
    """The visit that a request belongs to; somebody who is not let in goes to the login."""
    visitor = access(request).visitor(request)
    if visitor is None:
        raise Elsewhere("/login")
    with store.session() as opened:
        yield Visit(request, visitor, opened, access(request).person(opened, visitor))


@contextlib.contextmanager
def research(request: Request) -> Iterator[Visit]:
    """The same for the researcher's pages, which nobody else sees."""
    with visit(request) as found:
        if not found.visitor.researcher:
            raise Refused("researchers_only")
        yield found


def named(request: Request) -> str:
    """The id of the visiting participant; the study is closed again, for what takes longer than a page."""
    with visit(request) as found:
        return found.person.id


def tell(request: Request, sentence: str) -> None:
    """Say it on the next page that is shown."""
    request.session["told"] = sentence


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A template, filled in; what comes from outside is escaped."""
    visitor = access(request).visitor(request)
    told = request.session.pop("told", "")
    text = ENVIRONMENT.get_template(template).render(
        request=request,
        visitor=visitor,
        local=access(request).local,
        language=texts.language.get(),
        csrf=forms.token(request),
        told=told,
        **values,
    )
    return HTMLResponse(text, status)


def to(path: str) -> Response:
    """Go there: what was sent is not sent again when the page is reloaded."""
    return RedirectResponse(path, 303)
