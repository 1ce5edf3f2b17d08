"""Who may visit: one person on this machine without a login, or the users of the MLflow server."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import requests
from requests.auth import HTTPBasicAuth

from compression.study import database, participants
from compression.study.participants import MAX_LOGIN
from compression.study.reading import OpenGate, ParticipantGate
from compression.study.texts import StudyError
from compression.study.web import sessions
from compression.study.web.brake import Brake
from compression.tracking import server
from compression.tracking.journal import home

if TYPE_CHECKING:
    from fastapi import Request
    from sqlalchemy.orm import Session

    from compression.study.definition import Study
    from compression.study.reading import Gate
    from compression.study.tables import Participant

LOGIN_TIMEOUT = 10.0  # seconds that the MLflow server has to check a login
CURRENT_USER_PATH = "/api/2.0/mlflow/users/current"
MAX_PASSWORD = 1000  # characters


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

    def gate(self, study: Study, participant: Participant) -> Gate:  # noqa: ARG002
        """Return what the participant may read: whatever they can without this app."""
        return OpenGate()


@dataclass(frozen=True)
class LoginAccess:
    """The users of the MLflow server `uri` (basic-auth); its administrators and the study's researchers see all."""

    uri: str
    # Of an account 1 guess in 30 s; of an address, which a whole class may have in common, 1 wrong login in 5 s.
    accounts: Brake = field(default_factory=lambda: Brake(free=5, longest=30.0), compare=False)
    addresses: Brake = field(default_factory=lambda: Brake(free=30, longest=5.0), compare=False)
    is_local = False

    def visitor(self, request: Request) -> Visitor | None:
        """Return the visitor from the session cookie; None if nobody is logged in, or they have logged out since."""
        login = request.session.get("login")
        if not login or not sessions.is_open(request.session.get("token", "")):
            return None
        return Visitor(login, bool(request.session.get("researcher")))

    def participant(self, session: Session, visitor: Visitor) -> Participant | None:
        """Return the participant with the visitor's login; None if they were not invited."""
        return participants.find_by_login(session, visitor.login)

    def gate(self, study: Study, participant: Participant) -> Gate:
        """Return what the participant may read of this server."""
        assignment = study.assignments[participant.assignment]
        return ParticipantGate(participant.id, frozenset([assignment.task, assignment.model]))

    def log_in(self, login: str, password: str, address: str = "", device: str = "") -> Visitor:
        """Check a login that comes from `address`; `device` names a browser in which this login succeeded before.

        Raises StudyError if it is wrong or the server does not answer, TooManyLoginsError if it has to wait.
        """
        account = (self.accounts, f"device {device}" if device else f"login {login}")
        counted = []
        try:
            for brake, key in [account] if device else [(self.addresses, address), account]:
                brake.begin(key)
                counted.append((brake, key))
            visitor = self._authenticate(login, password)
        except StudyError as error:
            if error.key != "wrong_login":  # the server is away, or the other brake holds
                for brake, key in counted:
                    brake.forgive(key)
            raise
        for brake, key in counted:
            brake.forgive(key, None if brake is self.accounts else 1)
        return visitor

    def _authenticate(self, login: str, password: str) -> Visitor:
        # HTTP's basic authentication ends the name at the first colon: `ada:x` would be ada, with another password.
        if not login or ":" in login or len(login) > MAX_LOGIN or len(password) > MAX_PASSWORD:
            raise StudyError("wrong_login")
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
            name, is_admin = str(user["username"]), bool(user["is_admin"])
        except (ValueError, KeyError, TypeError) as error:
            reason = str(response.status_code)
            raise StudyError("server_away", url=server.redact_uri(self.uri), reason=reason) from error
        with database.open_session() as session:
            researchers = database.load_study(session).researchers
        return Visitor(name, is_admin or name in researchers)


Access = LocalAccess | LoginAccess


def cookie_secret() -> str:
    """Return the key that signs cookies: COMPRESSION_STUDY_SECRET, or one that is created once in the lab's folder."""
    if secret := os.environ.get("COMPRESSION_STUDY_SECRET"):
        return secret
    path = home() / "study.secret"
    if not path.exists():
        # A temporary file is readable by its owner only. Linking it is atomic: of two processes, one creates the key.
        # In the same folder, for a hard link cannot lead to another file system.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text(encoding="utf-8")
