"""What a browser sends: read up to a limit, and only from a page of ours."""

from __future__ import annotations

import secrets
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request

from compression.study.texts import Refused

MAX_BODY = 512 << 10  # bytes; the longest answers of a whole questionnaire, in Chinese and percent-encoded, fit
MAX_FIELDS = 500


class TooLong(Refused):
    """A body that is longer than any form of ours."""


class Forged(Refused):
    """A form that no page of this visit showed."""


class Form(dict[str, list[str]]):
    """Field -> the values that were sent for it."""

    def one(self, name: str) -> str:
        return (self.get(name) or [""])[0]


def token(request: Request) -> str:
    """What proves that a form came from a page of this visit; made at the first page."""
    return request.session.setdefault("csrf", secrets.token_urlsafe(24))


async def read(request: Request) -> Form:
    """The fields of a form; TooLong beyond the limit, Forged without the token of this visit."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise TooLong("body_too_long", most=MAX_BODY >> 10)
    try:
        form = Form(parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError as error:  # UnicodeDecodeError, or too many fields
        raise TooLong("body_too_long", most=MAX_BODY >> 10) from error
    known = request.session.get("csrf", "")
    if not known or not secrets.compare_digest(form.one("csrf").encode(), known.encode()):
        raise Forged("forged")
    return form


Sent = Annotated[Form, Depends(read)]
