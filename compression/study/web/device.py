"""Browsers in which somebody has logged in before, by a signed cookie; the brake on wrong logins counts them apart."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from itsdangerous import BadData, URLSafeTimedSerializer

from compression.study.web.access import cookie_secret

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.responses import Response

COOKIE, SECONDS = "device", 90 * 86_400


def _signed() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(cookie_secret(), salt=COOKIE)


def _checksum(login: str) -> str:
    return hashlib.sha256(login.encode()).hexdigest()


def find(request: Request, login: str) -> str:
    """Return the name that the browser got when `login` logged in there; empty if they never did."""
    try:
        known, name = _signed().loads(request.cookies.get(COOKIE, ""), max_age=SECONDS)
    except (BadData, ValueError, TypeError):
        return ""
    return str(name) if known == _checksum(login) else ""


def remember(request: Request, response: Response, login: str) -> None:
    """Give the browser a name for `login`; the cookie shows neither who it is nor what they did."""
    content = _signed().dumps([_checksum(login), secrets.token_urlsafe(16)])
    secure = request.app.state.https
    response.set_cookie(COOKIE, content, SECONDS, httponly=True, samesite="lax", secure=secure)
