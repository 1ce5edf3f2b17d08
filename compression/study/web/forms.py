"""Submitted forms: read up to a limit, and only with the CSRF token of the session."""

import secrets
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request

from compression.study.texts import StudyError

# The longest answers to a whole questionnaire fit: a Chinese character takes nine bytes percent-encoded.
MAX_BODY_BYTES = 512 << 10
MAX_FIELDS = 500


class BodyTooLargeError(StudyError):
    """The request body is larger, or has more fields, than any of our forms."""


class CsrfError(StudyError):
    """The form does not have the CSRF token of the session: another site may have sent it."""


class Form(dict[str, list[str]]):
    """The submitted values by field."""

    def first(self, name: str) -> str:
        """Return the first value of the field `name`; empty if there is none."""
        return (self.get(name) or [""])[0]


def csrf_token(request: Request) -> str:
    """Return the CSRF token of the session, which is created at the first page."""
    token: str = request.session.setdefault("csrf", secrets.token_urlsafe(24))
    return token


async def read_form(request: Request) -> Form:
    """Read the form of a request. Raises BodyTooLargeError or CsrfError."""
    body = b""
    # Counted as it comes: Content-Length may be wrong or missing.
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError("body_too_long", most=MAX_BODY_BYTES >> 10)
    try:
        form = Form(parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError as error:  # not UTF-8, or too many fields
        raise BodyTooLargeError("body_too_long", most=MAX_BODY_BYTES >> 10) from error
    if any("\0" in text for texts in form.values() for text in texts):  # PostgreSQL keeps no text with it
        raise StudyError("nul_character")
    token = request.session.get("csrf", "")
    # As bytes: compare_digest refuses texts beyond ASCII. In constant time, so that no prefix can be guessed.
    if not token or not secrets.compare_digest(form.first("csrf").encode(), token.encode()):
        raise CsrfError("forged")
    return form


SubmittedForm = Annotated[Form, Depends(read_form)]
