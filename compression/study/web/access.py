"""Who may visit: one person on this machine without a login, or the users of the MLflow server."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests
from requests.auth import HTTPBasicAuth

from compression.study import database, participants
from compression.study.texts import StudyError
from compression.tracking import server
from compression.tracking.journal import home

if TYPE_CHECKING:
    from fastapi import Request
    from sqlalchemy.orm import Session

    from compression.study.tables import Participant

LOGIN_TIMEOUT = 10.0  # seconds that the MLflow server has to check a login
CURRENT_USER_PATH = "/api/2.0/mlflow/users/current"


@dataclass(frozen=True)
class Visitor:
    """Somebody who is logged in."""

    login: str
    researcher: bool


@dataclass(frozen=True)
class LocalAccess:
    """No login: every visitor is this one participant, or a researcher if it is empty. For 127.0.0.1 only."""

    participant_id: str = ""
    is_local = True

    def visitor(self, request: Request) -> Visitor | None:  # noqa: ARG002
        """Return the visitor, who is the same for every request."""
        return Visitor(self.participant_id, researcher=not self.participant_id)

    def participant(self, session: Session, visitor: Visitor) -> Participant | None:  # noqa: ARG002
        """Return the participant; None for a researcher. Raises StudyError if the participant has been deleted."""
        return participants.find(session, self.participant_id) if self.participant_id else None


@dataclass(frozen=True)
class LoginAccess:
    """The users of the MLflow server `uri` (basic-auth); its administrators and the study's researchers see all."""

    uri: str
    is_local = False

    def visitor(self, request: Request) -> Visitor | None:
        """Return the visitor from the session cookie; None if nobody is logged in."""
        login = request.session.get("login")
        return Visitor(login, bool(request.session.get("researcher"))) if login else None

    def participant(self, session: Session, visitor: Visitor) -> Participant | None:
        """Return the participant with the visitor's login; None if they were not invited."""
        return participants.find_by_login(session, visitor.login)

    def log_in(self, login: str, password: str) -> Visitor:
        """Check a login at the MLflow server. Raises StudyError if it is wrong or the server does not answer."""
        try:
            auth = HTTPBasicAuth(login.encode(), password.encode())  # as text, requests would encode Latin-1 only
            url = f"{self.uri}{CURRENT_USER_PATH}"
            response = requests.get(url, auth=auth, timeout=LOGIN_TIMEOUT, allow_redirects=False)
        except requests.RequestException as error:
            reason = server.short_reason(error)
            raise StudyError("server_away", url=server.redact_uri(self.uri), reason=reason) from error
        if response.status_code in (401, 403):
            raise StudyError("wrong_login")
        try:
            user = response.json()["user"]
        except (ValueError, KeyError, TypeError) as error:
            reason = str(response.status_code)
            raise StudyError("server_away", url=server.redact_uri(self.uri), reason=reason) from error
        with database.open_session() as session:
            researchers = database.load_study(session).researchers
        return Visitor(user["username"], user["is_admin"] or user["username"] in researchers)


Access = LocalAccess | LoginAccess


def cookie_secret() -> str:
    """Return the key that signs cookies: COMPRESSION_STUDY_SECRET, or one that is created once in the lab's folder."""
    if secret := os.environ.get("COMPRESSION_STUDY_SECRET"):
        return secret
    path = home() / "study.secret"
    if not path.exists():
        # A temporary file is readable by its owner only. Linking it is atomic: of two processes, one creates the key.
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
            file.write(secrets.token_hex(32))
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text()
