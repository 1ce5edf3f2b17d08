"""The FastAPI app: routes, middleware, and error pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from compression.errors import UserError
from compression.study import texts
from compression.study.texts import StudyError
from compression.study.web import hand_in, launch, login, participant, questionnaire, researcher
from compression.study.web.access import Access, cookie_secret
from compression.study.web.forms import BodyTooLargeError, CsrfError
from compression.study.web.pages import WEB_FOLDER, RedirectError, redirect, render_page
from compression.study.web.sessions import LOGIN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

STATUS_OF_TYPE: dict[type[UserError], int] = {BodyTooLargeError: 413, CsrfError: 403}
STATUS_OF_KEY = {"database_away": 503, "server_away": 503, "researchers_only": 403, "not_invited": 403}


class SecurityHeadersMiddleware:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
                message["headers"] += headers
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class LanguageMiddleware:
    """Sets the language: the visitor's choice, or else the browser's preference if we have it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        if scope["type"] == "http":
            accepted = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")
            preferred = "zh" if accepted.startswith("zh") else texts.DEFAULT_LANGUAGE
            code = scope["session"].get("language") or preferred
            texts.language.set(code if code in texts.LANGUAGES else texts.DEFAULT_LANGUAGE)
        await self.app(scope, receive, send)


def create_app(access: Access, hosts: list[str], https: bool = False) -> FastAPI:
    """Create the app for the visitors of `access`.

    It answers only requests for one of the host names `hosts`, which prevents DNS rebinding: a foreign name that
    resolves to this machine. With `https`, cookies are only sent over HTTPS.
    """
    app = FastAPI(title="The study", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.access, app.state.https = access, https
    # A request passes the middleware in reverse order: the language needs the session.
    app.add_middleware(LanguageMiddleware)
    # "lax": a link from elsewhere finds the visitor logged in, and another site's form does not.
    app.add_middleware(SessionMiddleware, cookie_secret(), "study", LOGIN_SECONDS, same_site="lax", https_only=https)
    app.add_middleware(TrustedHostMiddleware, hosts, www_redirect=False)
    # Outermost, so that refusals of the others (a foreign host, say) have the headers as well.
    app.add_middleware(SecurityHeadersMiddleware)
    for module in (login, participant, questionnaire, launch, hand_in, researcher):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=WEB_FOLDER / "static"), "static")
    handlers: dict[type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
        UserError: show_error,
        RedirectError: follow_redirect,
        HTTPException: show_http_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    return app


async def show_error(request: Request, error: UserError) -> Response:
    """Render the sentence of a UserError."""
    status = STATUS_OF_TYPE.get(type(error), 400)
    if isinstance(error, StudyError):
        status = STATUS_OF_KEY.get(error.key, status)
    return render_page(request, "refused.html", status, sentence=str(error))


async def follow_redirect(_: Request, error: RedirectError) -> Response:
    """Redirect to the page that a RedirectError names."""
    return redirect(error.path)


async def show_http_error(request: Request, error: HTTPException) -> Response:
    """Render the page for a path that does not exist, or a method that it does not have."""
    return render_page(request, "refused.html", error.status_code, sentence=texts.translate("no_page"))
