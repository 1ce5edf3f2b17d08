"""The app itself: its routes, what every answer carries, and what is said when something is wrong."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compression.errors import UserError
from compression.study import texts
from compression.study.texts import Refused
from compression.study.web import entrance, handing_in, participant, questions, researcher, starting
from compression.study.web.access import Access, secret
from compression.study.web.forms import Forged, TooLong
from compression.study.web.pages import FOLDER, Elsewhere, page, to

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LASTS = 12 * 3600  # seconds that a login lasts
STATUS: dict[type[UserError], int] = {TooLong: 413, Forged: 403}
STATUS_OF_KEY = {"database_away": 503, "server_away": 503, "researchers_only": 403, "not_invited": 403}


class Headers:
    """Adds the security headers to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)


class Language:
    """Answers in the language the visitor chose, else in the one their browser asks for."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            asked = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")
            code = scope["session"].get("language") or ("zh" if asked.startswith("zh") else texts.DEFAULT)
            texts.language.set(code if code in texts.LANGUAGES else texts.DEFAULT)
        await self.app(scope, receive, send)


def create(access: Access, hosts: list[str], https: bool = False) -> FastAPI:
    """The app for these visitors, answering under these host names alone (a foreign name may hide this machine)."""
    app = FastAPI(title="The study", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.access = access
    # The one added last is met first.
    app.add_middleware(Language)
    app.add_middleware(SessionMiddleware, secret(), "study", LASTS, same_site="lax", https_only=https)
    app.add_middleware(TrustedHostMiddleware, hosts, www_redirect=False)
    app.add_middleware(Headers)
    for part in (entrance, participant, questions, starting, handing_in, researcher):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), "static")
    handlers: dict[type[Exception], Callable] = {UserError: refuse, Elsewhere: lead, HTTPException: miss}
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    return app


async def refuse(request: Request, error: UserError) -> Response:
    """A UserError is one sentence on a page."""
    status = STATUS.get(type(error), 400)
    if isinstance(error, Refused):
        status = STATUS_OF_KEY.get(error.key, status)
    return page(request, "refused.html", status, sentence=str(error))


async def lead(request: Request, error: Elsewhere) -> Response:
    return to(error.path)


async def miss(request: Request, error: HTTPException) -> Response:
    return page(request, "refused.html", error.status_code, sentence=texts.say("no_page"))
